"""The files in which DeepSpeed keeps a trainer's state, read without running what they may hold.

They are pickles, and DeepSpeed loads them as such: whoever hands over a checkpoint could run code here. `read_state`
builds tensors, plain containers and the few classes that DeepSpeed writes, and refuses anything else by name.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from troupe.errors import CheckpointError, first_line

TRAINER_STATE = "trainer_state"
LAYOUT = "layout.json"
"""In it: the number of ranks, the ZeRO stage and the precision that its files fit."""


def read_state(path: str | Path, map_location: Any = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """Return the content of one file; CheckpointError where it holds code, is damaged, or is another thing."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            state = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        if (found := re.search(r"GLOBAL (\S+)", str(error))) is None:
            raise CheckpointError(f"{path} is no trainer state, or damaged; take another checkpoint") from None
        raise CheckpointError(
            f"{path} is refused: it asks for {found[1]}, which no trainer state needs and which could run code; take a "
            "checkpoint of your own, or the safetensors beside it as model.path"
        ) from None
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__} and no trainer state; take another checkpoint")
    return state


def gathered_state(directory: str) -> dict[str, torch.Tensor]:
    """Return the whole model out of the trainer state in `directory`, under the names of the engine's model, adapters
    apart.

    Trained weights are ZeRO's fp32 masters, where it keeps some. Raises CheckpointError when a rank's file is missing.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    shards = Path(directory) / TRAINER_STATE / "state"
    for file in shards.glob("*.pt"):
        read_state(file, mmap=True)  # DeepSpeed reads them again, in its own way
    state: dict[str, torch.Tensor] = {}
    whole = shards / "mp_rank_00_model_states.pt"
    if whole.is_file():  # below stage 3 each rank has all of the model, frozen weights among it
        state |= read_state(whole)["module"]
    if next(shards.glob("*_optim_states.pt"), None) is not None:
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                state |= get_fp32_state_dict_from_zero_checkpoint(str(shards.parent), tag=shards.name)
        except (ValueError, FileNotFoundError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{shards} is not a whole ZeRO checkpoint: {error}; bring the files of all ranks together"
            ) from None
    if not state:
        raise CheckpointError(f"{directory} holds no trainer state to gather weights from")
    # Beside the model there may be the parts that it started from.
    return {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}

"""GGUF files of llama.cpp: their model, tokenizer and chat template as a directory that transformers and vLLM load.

`troupe.runs.model_paths.locate` asks here for every job, `make smollm2` for its model. transformers reads the file, and
is imported only where there is one to convert; what it would read wrongly or leave out is refused or set here.
"""

from __future__ import annotations

import hashlib
import logging
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from troupe.disk import human_bytes
from troupe.errors import CheckpointError, first_line
from troupe.runs.conversion import FORM, MODELS, digest_of, once

log = logging.getLogger(__name__)

GPT2_SPLITS = ("gpt-2", "default")
"""What GGUF files call the way in which GPT-2 splits text; transformers takes all that it does not know for it."""
PLAIN = (0, 1)
"""GGUF's numbers for fp32 and fp16, which bf16 would round."""
GGUF_ERRORS = (ValueError, LookupError, NotImplementedError, OSError, ArithmeticError, RuntimeError, struct.error)
"""What transformers raises for a file that it cannot read."""


def directory_of_gguf(file: Path) -> str:
    """Return the directory of the model in a GGUF file. Raises CheckpointError where it cannot be read."""
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}; give a GGUF file, a directory or a hub name")
    key = hashlib.sha256(f"{FORM}\0{digest_of(file)}".encode()).hexdigest()[:12]
    return once(
        MODELS / f"{file.stem.lower()}-{key}",
        lambda directory: convert_gguf(file, directory),
        f"{file.name} ({human_bytes(file.stat().st_size)})",
    )


def convert_gguf(file: Path, directory: Path) -> None:
    """Write the model, the tokenizer and the chat template of a GGUF file as transformers has them.

    Weights are in bf16, which keeps more than blocks of 4 to 8 bits have; those of a file in fp16 or fp32 in fp32.
    Raises CheckpointError for a file that is cut short and for one that transformers does not read, or not rightly.
    """
    from transformers import AutoTokenizer, modeling_gguf_pytorch_utils
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # what is waited for is told by `waiting`
    modeling_gguf_pytorch_utils.tqdm = lambda tensors, **_: tensors
    metadata = _checked_metadata(file)
    model = _gguf_model(file)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")  # which transformers may leave out
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        _set_split(tokenizer, str(metadata.get("tokenizer.ggml.pre", "default")), file)
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    pad = metadata.get("tokenizer.ggml.padding_token_id", ends[0] if ends else None)
    generation = {"eos_token_id": ends[0] if len(ends) == 1 else ends or None, "pad_token_id": pad}
    model.generation_config.update(**generation)
    model.config.update({"eos_token_id": ends[0] if ends else None, "pad_token_id": pad})
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _checked_metadata(file: Path) -> Mapping[str, Any]:
    """Return the metadata of a whole GGUF file whose rotary embedding transformers would read."""
    from transformers.integrations.gguf import read_gguf_metadata
    from transformers.integrations.gguf.reader import GgufHeader

    try:
        metadata, names = read_gguf_metadata(str(file))
        header = GgufHeader.from_file(str(file))
    except GGUF_ERRORS as error:
        raise CheckpointError(
            f"{file} is no whole GGUF file that transformers reads ({first_line(error)}); copy or download it again"
        ) from None
    end = max((header.data_start + each.offset + each.nbytes for each in header.tensors), default=0)
    size = file.stat().st_size
    if size < end or not names:
        raise CheckpointError(f"{file} was not copied to its end: {size:,} of {end:,} bytes; copy or download it again")
    kind = metadata["general.architecture"]
    scaling = metadata.get(f"{kind}.rope.scaling.type", "none")
    if "rope_freqs.weight" in names or (scaling != "none" and kind != "gpt-oss"):
        raise CheckpointError(
            f"{file} stretches its rotary embedding ({kind}, scaling {scaling}), which transformers does not read off "
            f"a GGUF file, so that log-probabilities would be wrong; give the model's own directory or hub name"
        )
    return dict(metadata)


def _gguf_model(file: Path) -> Any:
    """Return the model of a GGUF file, its blocks turned into numbers: all that the file holds, and nothing else."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.integrations.gguf.reader import GgufHeader

    tensors = GgufHeader.from_file(str(file)).tensors
    largest = max(tensors, key=lambda tensor: tensor.nbytes).ggml_type
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32 if largest in PLAIN else torch.bfloat16,
            output_loading_info=True,
        )
    except GGUF_ERRORS as error:
        raise CheckpointError(
            f"{file} holds a model that transformers does not read off a GGUF file ({first_line(error)}); give its own "
            f"directory or hub name"
        ) from None
    lost, surplus = len(info["missing_keys"]), sum(math.prod(each.shape) for each in tensors) - model.num_parameters()
    if lost or surplus:
        raise CheckpointError(
            f"{file} and transformers' {type(model).__name__} differ: {lost} tensors are not in the file, and it holds "
            f"{surplus:,} numbers more than the model; give the model's own directory or hub name"
        )
    vars(model.config).pop("quantization_config", None)  # its weights are numbers now
    model.hf_quantizer = None
    return model


def _set_split(tokenizer: Any, name: str, file: Path) -> None:
    """Split text as the vocabulary was trained, where transformers takes GPT-2's way for one that it does not know."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif name not in (*GPT2_SPLITS, *GGUF_PRE_TOKENIZER_SPLITS):
        log.warning(
            "%s splits text in the way %r, which is not known here: it is split like GPT-2's; compare some texts with "
            "the model's own tokenizer, or copy its tokenizer.json",
            file,
            name,
        )

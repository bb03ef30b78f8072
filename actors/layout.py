"""How a trainer is laid out over its ranks, and a state saved in one layout read in another.

DeepSpeed's files fit the number of ranks, the ZeRO stage and the precision that wrote them. `StoredTrainer` reads them
by the names of parameters, and `lay_out` gives each rank its part; no file is written or changed. Where the layout is
the same, DeepSpeed loads its own files instead (`Engine.load`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from troupe.actors.trainer_state import read_state
from troupe.errors import CheckpointError

WEIGHTS, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")
COUNTERS = ("global_steps", "global_samples", "skipped_steps")


class Part(NamedTuple):
    """A stretch of a parameter in a flat tensor: `flat[at : at + size]` is `parameter[start : start + size]`."""

    name: str
    at: int
    start: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTrainer:
    """The state that any number of ranks saved, by the names of parameters."""

    pieces: Mapping[str, Sequence[Mapping[str, torch.Tensor]]]
    """Consecutive flat pieces of each parameter, mapped from the files: weights, and the moments of what is trained."""
    steps: float
    """AdamW's steps so far."""
    counts: Mapping[str, Any]
    """The schedule's state and the engine's counters, as DeepSpeed names them."""

    def stretch(self, name: str, key: str, start: int, size: int) -> torch.Tensor:
        """Return [size] fp32: elements of a parameter's weights or of a moment from `start` on; others are not read."""
        found, begin = [], 0
        for piece in self.pieces[name]:
            tensor = piece[key]
            found.append(tensor[max(0, start - begin) : max(0, start + size - begin)])
            begin += tensor.numel()
        return torch.cat(found).float()


def described(layout: Mapping[str, Any]) -> str:
    """Return a layout in words, such as `2 ranks, ZeRO stage 3, bf16`."""
    ranks = layout["num_ranks"]
    return f"{ranks} rank{'s' if ranks > 1 else ''}, ZeRO stage {layout['zero_stage']}, {layout['precision']}"


# -- reading -------------------------------------------------------------------------------------------------


def read_trainer(shards: Path, layout: Mapping[str, Any], trained: Mapping[str, int]) -> StoredTrainer:
    """Return the state in `shards`, saved in `layout`; CheckpointError unless it is that of the parameters `trained`
    (name -> number of elements, in the optimizer's order).
    """
    stage, num_ranks = layout["zero_stage"], layout["num_ranks"]
    prefix = "zero_pp_rank_0_" if stage == 3 else ""
    model = read_state(shards / f"{prefix}mp_rank_00_model_states.pt", mmap=True)
    ranks = [_of_rank(shards, model, layout, rank) for rank in range(num_ranks)] if stage else [_of_all(model, trained)]
    pieces = _gathered(found for _, parts in ranks for found in parts)
    sizes = {name: sum(piece[WEIGHTS].numel() for piece in parts) for name, parts in pieces.items()}
    other = [name for name in {**trained, **sizes} if trained.get(name) != sizes.get(name)]
    if other:
        raise CheckpointError(
            f"{shards} holds the trainer state of other weights ({other[0]}: {sizes.get(other[0], 0)} elements, "
            f"{trained.get(other[0], 0)} here); resume with the model, the adapter and the frozen layers that it was "
            "begun with"
        )
    frozen = _of_frozen(shards, num_ranks) if stage == 3 else model["module"].items()
    pieces = _gathered((name, {WEIGHTS: tensor.flatten()}) for name, tensor in frozen if name not in pieces) | pieces
    steps = max((float(state["step"]) for states, _ in ranks for state in states), default=0.0)
    return StoredTrainer(pieces=pieces, steps=steps, counts={name: model[name] for name in ("lr_scheduler", *COUNTERS)})


Named = tuple[str, dict[str, torch.Tensor]]
"""A piece of a parameter with its name."""


def _gathered(named: Iterable[Named]) -> dict[str, list[dict[str, torch.Tensor]]]:
    pieces: dict[str, list[dict[str, torch.Tensor]]] = {}
    for name, piece in named:
        pieces.setdefault(name, []).append(piece)
    return pieces


def _of_frozen(shards: Path, num_ranks: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what the ranks of stage 3 hold of weights that are not trained."""
    for rank in range(num_ranks):
        model = read_state(shards / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt", mmap=True)
        yield from (model["frozen_param_fragments"] or {}).items()


def _of_all(model: Mapping[str, Any], trained: Mapping[str, int]) -> tuple[list[Any], list[Named]]:
    """Return AdamW's states and the pieces of stage 0, where every rank has all, in the order of `trained`."""
    optimizer = model["optimizer"]
    states = optimizer.get("optimizer_state_dict", optimizer)["state"]
    masters = optimizer.get("fp32_groups", [[model["module"][name] for name in trained]])[0]
    pairs = enumerate(zip(trained, masters, strict=True))
    return list(states.values()), [(name, _states(master, states.get(index, {}))) for index, (name, master) in pairs]


def _of_rank(
    shards: Path, model: Mapping[str, Any], layout: Mapping[str, Any], rank: int
) -> tuple[list[Any], list[Named]]:
    """Return AdamW's states and the pieces in one rank's file of stages 1 to 3, whose tensors are flat and of several
    parameters.
    """
    prefix = "bf16_" if layout["precision"] == "bf16" else ""
    file = shards / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    saved = read_state(file, mmap=True)["optimizer_state_dict"]
    if layout["zero_stage"] == 3:
        masters, states = saved["fp32_flat_groups"], saved["optimizer_state_dict"]["state"]
        sizes = [{name: shape.numel() for name, shape in group.items()} for group in model["param_shapes"]]
        groups = [zero3_parts(group, rank, layout["num_ranks"]) for group in sizes]
    else:
        masters, states = saved["single_partition_of_fp32_groups"], saved["base_optimizer_state"]["state"]
        places = saved["param_slice_mappings"]
        groups = [[Part(name, place.start, 0, place.numel) for name, place in group.items()] for group in places]
    pieces = []
    for index, (master, parts) in enumerate(zip(masters, groups, strict=True)):
        flat = _states(master, states.get(index, {}))
        for part in parts:
            stretch = slice(part.at, part.at + part.size)
            pieces.append((part.name, {key: tensor[stretch] for key, tensor in flat.items()}))
    return list(states.values()), pieces


def _states(weights: torch.Tensor, moments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return flat weights and moments; before its first step AdamW has none, which is as good as zeros."""
    none = torch.zeros(1).expand(weights.numel())
    return {WEIGHTS: weights.detach().flatten(), **{key: moments.get(key, none).flatten() for key in MOMENTS}}


def zero3_parts(sizes: Mapping[str, int], rank: int, num_ranks: int) -> list[Part]:
    """Return what ZeRO-3 gives a rank of parameters (name -> elements): of each an equal share, the last one padded.

    Example: of 5 elements on two ranks rank 0 has 3, and rank 1 has 2 and a padding of one.
    """
    parts, at = [], 0
    for name, size in sizes.items():
        share = -(-size // num_ranks)
        start = min(size, rank * share)
        parts.append(Part(name, at, start, min(share, size - start)))
        at += share
    return parts


# -- laying out ----------------------------------------------------------------------------------------------


def lay_out(engine: Any, stored: StoredTrainer, zero_stage: int) -> None:
    """Put a stored state into a DeepSpeed engine around torch's AdamW. A collective."""
    optimizer = engine.optimizer
    if zero_stage == 3:
        optimizer.checkpoint_event_prologue()  # shards the weights
    for flat, parts in _own_parts(engine, zero_stage):
        _fill(flat, engine.basic_optimizer.state[flat], parts, stored)
    for tensor, part in _frozen_parts(engine, zero_stage):
        if part.name in stored.pieces:
            _write(tensor, part, stored, WEIGHTS)
    # The masters are in place; what the model computes with follows from them.
    if zero_stage == 3:
        optimizer.load_state_dict({engine.global_rank: optimizer.state_dict()})
        optimizer.checkpoint_event_epilogue()
    elif zero_stage > 0:
        optimizer.update_lp_params()
    else:
        for parameter, master in _masters(engine):
            parameter.data.copy_(master.data)
    engine.lr_scheduler.load_state_dict(dict(stored.counts["lr_scheduler"]))
    for name in COUNTERS:
        setattr(engine, name, stored.counts[name])


def _fill(flat: torch.Tensor, state: dict[str, Any], parts: Sequence[Part], stored: StoredTrainer) -> None:
    """Write the parts of parameters that lie in `flat`, and AdamW's `state` of it."""
    state["step"] = torch.tensor(stored.steps, dtype=torch.float32, device=flat.device)
    for key in MOMENTS:
        if key not in state:
            state[key] = torch.zeros_like(flat)
    for part in parts:
        for key, tensor in ((WEIGHTS, flat), *((key, state[key]) for key in MOMENTS)):
            _write(tensor, part, stored, key)


def _write(tensor: torch.Tensor, part: Part, stored: StoredTrainer, key: str) -> None:
    stretch = stored.stretch(part.name, key, part.start, part.size)
    tensor.data.view(-1)[part.at : part.at + part.size] = stretch


def _own_parts(engine: Any, zero_stage: int) -> Iterator[tuple[torch.Tensor, list[Part]]]:
    """Yield each tensor that this rank's AdamW updates, and what it is made of."""
    optimizer, names = engine.optimizer, engine.param_names
    if zero_stage == 3:
        for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
            sizes = {names[parameter]: parameter.ds_numel for parameter in group}
            yield flat, zero3_parts(sizes, engine.global_rank, engine.world_size)
    elif zero_stage > 0:
        for group, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
            places = [(names[parameter], parameter._hp_mapping) for parameter in group]
            yield flat, [Part(name, *_place(place)) for name, place in places if place is not None]
    else:
        for parameter, master in _masters(engine):
            yield master, [Part(names[parameter], 0, 0, parameter.numel())]


def _frozen_parts(engine: Any, zero_stage: int) -> Iterator[tuple[torch.Tensor, Part]]:
    """Yield what this rank holds of each parameter that is not trained."""
    for parameter, name in engine.param_names.items():
        if parameter.requires_grad:
            continue
        if zero_stage == 3:
            (part,) = zero3_parts({name: parameter.ds_numel}, engine.global_rank, engine.world_size)
            yield parameter.ds_tensor, part
        else:
            yield parameter, Part(name, 0, 0, parameter.numel())


def _place(mapping: Any) -> tuple[int, int, int]:
    """Return (at, start, size) of DeepSpeed's mapping of a parameter into a rank's flat tensor."""
    flat, parameter = mapping.hp_fragment_address, mapping.lp_fragment_address
    return flat.start, parameter.start, flat.numel


def _masters(engine: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (parameter, fp32 master) without ZeRO; in fp32 a parameter is its own."""
    optimizer = engine.optimizer
    masters = engine.basic_optimizer.param_groups[0]["params"]
    parameters = optimizer.fp16_groups[0] if hasattr(optimizer, "fp16_groups") else masters
    return list(zip(parameters, masters, strict=True))

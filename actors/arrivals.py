"""Whether an engine holds what it was sent, exactly: no bound, no forward pass.

vLLM fuses what it loads, pads it, and on a CPU packs it for its kernels, so its bytes differ from the trainer's in a
healthy sync. Three comparisons close the chain: of each tensor the digest that left the trainer with that of what was
received (the gate does it); where vLLM's own loaders copied it to; and what lies at that place when the sync is over. A
weight that was packed is read back through its kernel: a product with a unit vector is a column, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

COLUMNS = 16
"""Columns of a packed weight that are read back after a sync; the next sync reads the next ones."""
PLAIN = ("UnquantizedLinearMethod", "UnquantizedEmbeddingMethod")
"""vLLM's methods that keep a weight's order. What others (experts) make of theirs is not compared."""


def digest(tensor: torch.Tensor) -> int:
    """Return the sum of a tensor's bytes as 64-bit words, modulo 2^64: one changed element changes it."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if flat.data_ptr() % 8 or flat.storage_offset() % 8:
        flat = flat.clone()
    whole = flat.numel() // 8 * 8
    return int(flat[:whole].view(torch.int64).sum() + flat[whole:].sum(dtype=torch.int64))


@dataclass(frozen=True, slots=True)
class _Copy:
    """A tensor that a loader copied into a part of a parameter."""

    module: torch.nn.Module
    parameter: str
    view: tuple[tuple[int, ...], tuple[int, ...], int]
    """(size, stride, storage offset) of the part."""
    dtype: torch.dtype
    digest: int | None
    """Of the part, where the parameter stays a tensor; else there are its `columns`."""
    columns: torch.Tensor | None
    label: str


class Arrivals(TorchDispatchMode):
    """One sync of an engine: what it received, where vLLM's loaders put it, and whether it is there.

    During a reload vLLM lets its loaders run on parameters without memory (meta) and counts what they copy; the same
    copies tell here which part of which parameter a tensor is meant for, whatever fuses, shards or turns it.
    """

    def __init__(self, model: torch.nn.Module, turn: int) -> None:
        """Before vLLM begins the reload. `turn` counts syncs: it chooses the columns."""
        super().__init__()
        self._model: Any = model
        self._turn = turn
        self._packed = {module for module in model.modules() if _is_packed(module)}
        self._places: dict[int, tuple[torch.nn.Module, str, str]] = {}
        self._kept: list[torch.Tensor] = []  # a freed storage's address would soon be another's
        self._copies: list[_Copy] = []
        self._pieces: list[tuple[int, int, str]] = []
        self._loaded: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._digests: dict[str, int] = {}
        self._unnamed = False

    def begin(self) -> None:
        """After vLLM began the reload: note the storages that its loaders will see."""
        for path, module in self._model.named_modules():
            method = getattr(module, "quant_method", None)
            if method is None or type(method).__name__ in PLAIN:
                for name, parameter in module.named_parameters(recurse=False):
                    self._kept.append(parameter)
                    self._places[_storage(parameter)] = (module, name, f"{path}.{name}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, what `load_weights` of the model is given is digested and followed."""
        load: Callable[[Iterable[tuple[str, torch.Tensor]]], Any] = self._model.load_weights

        def followed(weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
            pieces = list(weights)
            self._pieces = [(piece.data_ptr(), piece.data_ptr() + piece.nbytes, name) for name, piece in pieces]
            for name, piece in pieces:
                self._digests[name], self._sizes[name] = digest(piece), piece.numel()
            with self:
                return load(pieces)

        self._model.load_weights = followed
        try:
            yield
        finally:
            del self._model.load_weights

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default and not args[1].is_meta:
            # A bias alone has memory already: vLLM leaves it where it is, and copies it onto itself in the end.
            bias = _storage(args[0]) in self._places and _storage(args[1]) not in self._places
            if args[0].is_meta or bias:
                self._note(args[0], args[1])
        return result

    def _note(self, part: torch.Tensor, source: torch.Tensor) -> None:
        start = source.data_ptr()
        name = next((name for first, end, name in self._pieces if first <= start < end), None)
        if name is None:
            self._unnamed = True  # a loader that computes what it copies
        else:
            self._loaded[name] = self._loaded.get(name, 0) + source.numel()
        place = self._places.get(_storage(part))
        if place is None:
            return
        module, parameter, label = place
        source = source.expand(part.shape).to(part.dtype)
        view = (tuple(part.shape), tuple(part.stride()), int(part.storage_offset()))
        if module not in self._packed:
            self._copies.append(_Copy(module, parameter, view, part.dtype, digest(source), None, label))
        elif part.dim() == 2 and part.stride() == (part.shape[1], 1) and part.storage_offset() % part.shape[1] == 0:
            columns = source[:, self._columns(part.shape[1])].clone()
            self._copies.append(_Copy(module, parameter, view, part.dtype, None, columns, label))

    def _columns(self, width: int) -> slice:
        first = self._turn * COLUMNS % width
        return slice(first, min(first + COLUMNS, width))

    def report(self, names: Sequence[str], *, whole: bool) -> tuple[dict[str, int], list[str]]:
        """Return (digest of each tensor received, what is wrong) once the sync is over; `names` were announced.
        `whole`: this process holds all of the model, not a share of each tensor.
        """
        with torch.inference_mode():
            faults = [*self._missing(names, whole), *self._changed(), *self._stale_packs()]
        return self._digests, list(dict.fromkeys(faults))

    def _missing(self, names: Sequence[str], whole: bool) -> Iterator[str]:
        if self._unnamed:
            return
        for name in names:
            loaded, size = self._loaded.get(name, 0), self._sizes.get(name, 0)
            if not loaded or (whole and loaded < size):
                yield f"{name} was not loaded" + (f" whole ({loaded} of {size} elements)" if loaded else "")

    def _changed(self) -> Iterator[str]:
        products: dict[torch.nn.Module, torch.Tensor] = {}
        for copy in self._copies:
            size, stride, offset = copy.view
            if copy.columns is None:
                held = getattr(copy.module, copy.parameter).data
                # Some kernels widen a bias.
                if digest(held.as_strided(size, stride, offset).to(copy.dtype)) != copy.digest:
                    yield f"{copy.label} is not what was loaded"
                continue
            if copy.module not in products:
                products[copy.module] = self._read_back(copy.module, size[1], copy.columns)
            row = offset // size[1]
            if not _same(products[copy.module][row : row + size[0]], copy.columns):
                yield f"{copy.label}, packed, is not what was loaded"

    def _stale_packs(self) -> Iterator[str]:
        """Yield the heads and embeddings that hold a tensor beside the packed copy, which nothing else looks at."""
        for path, module in self._model.named_modules():
            weight = getattr(module, "weight", None)
            if (
                hasattr(module, "cpu_linear")
                and module not in self._packed
                and weight is not None
                and weight.dim() == 2
            ):
                held = weight.data[:, self._columns(weight.shape[1])]
                if not _same(self._read_back(module, weight.shape[1], held), held):
                    yield f"the packed copy of {path}.weight is an old one"

    def _read_back(self, module: Any, width: int, like: torch.Tensor) -> torch.Tensor:
        """Return [N, columns] of a packed weight by its own kernel: other terms of a unit vector's product are 0."""
        columns = self._columns(width)
        units = torch.zeros(columns.stop - columns.start, width, dtype=like.dtype, device=like.device)
        units[:, columns].fill_diagonal_(1)
        return module.cpu_linear(units, module.weight, None).T


def _is_packed(module: Any) -> bool:
    """Return whether vLLM keeps this module's weight in its CPU kernel's layout alone."""
    weight = getattr(module, "weight", None)
    return hasattr(module, "cpu_linear") and weight is not None and weight.numel() == 0


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _same(read: torch.Tensor, sent: torch.Tensor) -> bool:
    """Equal values; what is too small for a normal number is zero in some kernels."""
    tiny = torch.finfo(sent.dtype).tiny
    read, sent = read.to(sent.dtype), sent
    return bool(((read == sent) | ((read.abs() < tiny) & (sent.abs() < tiny))).all())

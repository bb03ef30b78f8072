"""The model that a partly frozen one started from, at the price of its trained layers alone (trlx's "hydra").

Layers that are not trained are those of the start for ever. Of the others a copy is kept beside the model, inside the
module that DeepSpeed wraps, and takes their place while the starting model is asked.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator

import torch
from transformers import PreTrainedModel


class TrainedParts(torch.nn.Module):
    """Copies of every part of a model that is trained, as it was when this was made."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._names = [
            name for name, part in _parts(model) if any(parameter.requires_grad for parameter in part.parameters())
        ]
        self._model = [model]  # in a list, so that it is not a submodule of its own copies
        self.copies = torch.nn.ModuleList(
            copy.deepcopy(model.get_submodule(name)).requires_grad_(False) for name in self._names
        )

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model computes with the copies."""
        (model,) = self._model
        originals = [model.get_submodule(name) for name in self._names]
        _put(model, self._names, self.copies)
        try:
            yield
        finally:
            _put(model, self._names, originals)


def _put(model: PreTrainedModel, names: Iterable[str], parts: Iterable[torch.nn.Module]) -> None:
    for name, part in zip(names, parts, strict=True):
        model.set_submodule(name, part)


def _parts(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield (name, module) of each layer, of the backbone's other modules, and of the head."""
    backbone = getattr(model, model.base_model_prefix)
    for name, module in backbone.named_children():
        path = f"{model.base_model_prefix}.{name}"
        if isinstance(module, torch.nn.ModuleList):
            yield from ((f"{path}.{index}", layer) for index, layer in enumerate(module))
        else:
            yield path, module
    yield from ((name, module) for name, module in model.named_children() if module is not backbone)

"""The model that a partly frozen one started from, at the price of its trained layers alone (trlx's "hydra").

Layers that are not trained are those of the start for ever. Of the others a copy is kept beside the model, inside the
module that DeepSpeed wraps, and takes their place while the starting model is asked.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel


class TrainedParts(torch.nn.Module):
    """Copies of every part of a model that is trained, as it was when this was made."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        names = list(_trained_parts(model))
        if not names:
            raise ValueError("nothing of the model is trained, so the model itself is the one that it started from")
        self._owners = {name: name.rpartition(".")[0] for name in names}
        self._model = [model]  # in a list, so that it is not a submodule of its own copies
        self.copies = torch.nn.ModuleList(
            copy.deepcopy(model.get_submodule(name)).requires_grad_(False) for name in names
        )

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model computes with the copies."""
        model, originals = self._model[0], {}
        for (name, owner), kept in zip(self._owners.items(), self.copies, strict=True):
            originals[name] = model.get_submodule(name)
            setattr(model.get_submodule(owner), name.rpartition(".")[2], kept)
        try:
            yield
        finally:
            for name, module in originals.items():
                setattr(model.get_submodule(self._owners[name]), name.rpartition(".")[2], module)


def _trained_parts(model: PreTrainedModel) -> Iterator[str]:
    """The names of layers and other modules of the backbone that have something to train, and of the head's."""
    backbone = getattr(model, model.base_model_prefix)
    for name, module in _children(model, backbone):
        if any(parameter.requires_grad for parameter in module.parameters()):
            yield name


def _children(model: PreTrainedModel, backbone: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, module in backbone.named_children():
        path = f"{model.base_model_prefix}.{name}"
        if isinstance(module, torch.nn.ModuleList):
            yield from ((f"{path}.{index}", layer) for index, layer in enumerate(module))
        else:
            yield path, module
    yield from ((name, module) for name, module in model.named_children() if module is not backbone)

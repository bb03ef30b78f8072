"""A generator whose receiver can be told to do one thing wrong: what vLLM on a CPU has done by itself, and its like."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from troupe.actors.generator import GeneratorWorker

FAULT = "TROUPE_TEST_FAULT"
"""Names a file; what it says is done wrong while it exists:

head        the head keeps what its product is computed with: the packed copy that a tied head has of its own
layer       the last layer's weights are not loaded
part        one key projection is not loaded
pack        the last layer is loaded, and its packed matrices are put back as they were
wire        one element of the final norm changes on its way
"""


class ForgetfulGenerator(GeneratorWorker):
    """The product's generator with one changed setting."""

    def __init__(self, *, flag: str, **arguments: Any) -> None:
        os.environ[FAULT] = flag  # vLLM's worker process inherits it
        super().__init__(**arguments)
        self._arguments.worker_extension_cls = "tests.actors.forgetful.ForgetfulExtension"


def __getattr__(name: str) -> Any:
    """vLLM's worker process asks for the extension; only there may vLLM be imported and the receiver changed."""
    if name != "ForgetfulExtension":
        raise AttributeError(name)
    from troupe.actors.weight_sync import GlooReceiver, WeightSyncExtension

    GlooReceiver.start_weight_update = _remembering(GlooReceiver.start_weight_update)  # type: ignore[method-assign]
    GlooReceiver.receive_weights = _noisy(GlooReceiver.receive_weights)  # type: ignore[method-assign]
    GlooReceiver.finish_weight_update = _undoing(GlooReceiver.finish_weight_update)  # type: ignore[method-assign]
    globals()[name] = WeightSyncExtension
    return WeightSyncExtension


def _remembering(start: Any) -> Any:
    def start_weight_update(self: Any) -> None:
        last = self.model.model.layers[-1]
        self.head, self.packs = self.model.lm_head.cpu_linear, _packs(last)
        _forget_to_load(type(self.model), f"layers.{len(self.model.model.layers) - 1}.")
        start(self)

    return start_weight_update


def _forget_to_load(model_cls: Any, last: str) -> None:
    """Below what is followed: the tensors arrive, and are not loaded."""
    if hasattr(model_cls, "load_everything"):
        return
    model_cls.load_everything = model_cls.load_weights

    def load_weights(self: Any, weights: Any) -> Any:
        left_out = {"layer": last, "part": f"{last}self_attn.k_proj.weight"}.get(_fault(), "nothing")
        return self.load_everything([(name, tensor) for name, tensor in weights if left_out not in name])

    model_cls.load_weights = load_weights


def _noisy(receive: Any) -> Any:
    def receive_weights(self: Any, update_info: Any) -> None:
        followed = self.model.load_weights

        def arriving(weights: Any) -> Any:
            pairs = list(weights)
            for name, tensor in pairs:
                if name == "model.norm.weight" and _fault() == "wire":
                    tensor[3] *= 1.5
            return followed(pairs)

        self.model.load_weights = arriving
        receive(self, update_info)

    return receive_weights


def _undoing(finish: Any) -> Any:
    def finish_weight_update(self: Any) -> None:
        finish(self)
        if _fault() == "head":
            self.model.lm_head.cpu_linear = self.head
        if _fault() == "pack":
            for module, packed in self.packs.items():
                module.cpu_linear = packed

    return finish_weight_update


def _packs(layer: Any) -> dict[Any, Any]:
    return {module: module.cpu_linear for module in layer.modules() if hasattr(module, "cpu_linear")}


def _fault() -> str:
    flag = Path(os.environ[FAULT])
    return flag.read_text() if flag.exists() else ""

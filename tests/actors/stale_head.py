"""A generator whose receiver can be told to forget the head: what vLLM on a CPU does with tied embeddings by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from actors.generator import GeneratorWorker

FLAG = "TROUPE_TEST_STALE_HEAD"
"""Names a file; while it exists the packed head is left as it was."""


class ForgetfulGenerator(GeneratorWorker):
    """The product's generator with one changed setting."""

    def __init__(self, *, flag: str, **arguments: Any) -> None:
        os.environ[FLAG] = flag  # vLLM's worker process inherits it
        super().__init__(**arguments)
        self._arguments.worker_extension_cls = "tests.actors.stale_head.ForgetfulExtension"


def __getattr__(name: str) -> Any:
    """vLLM's worker process asks for the extension; only there may vLLM be imported and the receiver changed."""
    if name != "ForgetfulExtension":
        raise AttributeError(name)
    from actors.weight_sync import GlooReceiver, WeightSyncExtension

    repacking = GlooReceiver.finish_weight_update

    def finish_weight_update(self: GlooReceiver) -> None:
        if not Path(os.environ[FLAG]).exists():
            repacking(self)
            return
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    GlooReceiver.finish_weight_update = finish_weight_update  # type: ignore[method-assign]
    globals()[name] = WeightSyncExtension
    return WeightSyncExtension

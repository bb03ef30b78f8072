"""Ray-native post-training of language models: one code path from a laptop's CPU to a cluster of GPUs.

    import troupe

    config = troupe.load_config("grpo", "configs/quickstart.yaml", "steps=100")
    result = troupe.train(config, rewards=[lambda sample, branch: float(sample.gold in branch.text)])
    print(result.heldout, result.checkpoint)
    print(troupe.evaluate(troupe.load_config("evaluate", f"model={result.checkpoint}")).metrics)

The installer imports `troupe.extension` before anything is installed, so only the standard library is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from troupe.lazy import lazy_exports

if TYPE_CHECKING:
    from troupe.api import evaluate as evaluate, load_config as load_config, train as train

__getattr__ = lazy_exports(__name__, __file__)

"""The gate: after every sync, trainer and generators must give the same probe tokens the same log-probability.

A head that stayed old, a layer that was not loaded or a wrong dtype changes what is sampled without any error;
here it becomes one, at the step where it happens.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.generators import Generators
from actors.policy import Policy
from algorithms.packing import Batch
from core.errors import ConsistencyError
from core.records import Branch, Group, Sample
from core.role_recipes import ConsistencyConfig

MAX_PROBE_TOKENS = 64
BOUNDS = {"fp32": 1e-3, "bf16": 0.05}
"""Mean |difference| in nats that is allowed. Measured gaps of a healthy sync: 1e-6 in fp32, 1e-3 (small models) to
0.02 (billions of parameters) in bf16; a head that is one update old exceeds 0.1."""


class ConsistencyGate:
    """Holds the probe sequences and the bound."""

    def __init__(self, prompts: Sequence[Sequence[int]], config: ConsistencyConfig, *, precision: str) -> None:
        """`prompts` are token ids of real prompts; the first `num_probes` of at least two tokens become probes."""
        usable = [list(ids[:MAX_PROBE_TOKENS]) for ids in prompts if len(ids) >= 2]
        self._probes = usable[: config.num_probes]
        if not self._probes:
            raise ValueError("the consistency gate needs a prompt of at least two tokens")
        self.bound = config.max_gap or BOUNDS[precision]
        groups = [
            Group(sample=Sample(sample_id="probe", prompt=""), prompt_ids=ids[:1], branches=[Branch(token_ids=ids[1:])])
            for ids in self._probes
        ]
        self._batch = Batch.from_groups(groups)

    def expect(self, policy: Policy) -> list[float]:
        """The trainer's log-probabilities of the probe tokens; asked while the policy has its device."""
        return policy.logprobs(self._batch).tolist()

    def measure(self, trainer: Sequence[float], generators: Generators) -> float:
        """The largest of the engines' mean |differences| from `trainer`, in nats. Raises ConsistencyError above the bound."""
        asked = [generators.logprobs(engine, self._probes) for engine in range(generators.group.size)]
        gaps = []
        for answer in asked:
            sampled = [value for values in answer.result(generators.config.sync_timeout_s) for value in values]
            gaps.append(sum(abs(a - b) for a, b in zip(trainer, sampled, strict=True)) / len(trainer))
        worst = max(gaps)
        if not worst <= self.bound:  # NaN fails too
            raise ConsistencyError(
                f"engine {gaps.index(worst)} and the trainer disagree by {worst:.4g} nats a token on {len(trainer)} probe tokens "
                f"(allowed: {self.bound:g}); the generator does not run the weights that were sent. Check that both use the same "
                "precision and model, and whether the model's head is tied; consistency.max_gap sets the bound"
            )
        return worst

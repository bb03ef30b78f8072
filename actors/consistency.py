"""The gate: after every sync the generators must hold the weights that were sent, and compute what the trainer
computes.

A head that stayed old, a layer that was not loaded or a wrong dtype changes what is sampled without any error;
here it becomes one, at the step where it happens. Two questions are asked: whether each tensor is where it belongs,
exactly (`actors/arrivals.py`), and whether the log-probabilities of probe tokens agree, as far as rounding allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from troupe.actors.generator import GeneratorWorker, Request, branch_seed
from troupe.actors.generators import Generators
from troupe.actors.policy import Policy
from troupe.algorithms.packing import Batch
from troupe.config.models import ConsistencyConfig
from troupe.errors import ConsistencyError
from troupe.processes.futures import wait_all
from troupe.records import Branch, Group, Sample
from troupe.runs.logprob_gap import LEAST, allowed_gap

PROMPT_TOKENS, ANSWER_TOKENS = 24, 24
"""Most tokens of a probe: the end of a prompt, and what the starting policy sampled behind it."""
NOISE_EVERY = 10
"""Syncs between two measurements of the noise, which cost an fp32 forward pass over the probes."""


class LogprobCheck:
    """Holds the probes and the bound.

    The probes are answers that the engines sample with the weights they were started with, before the first sync: a run
    that resumes starts its engines with the same weights and seeds, and so has the same probes.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        config: ConsistencyConfig,
        *,
        precision: str,
        max_length: int = PROMPT_TOKENS + 2 * ANSWER_TOKENS,
        seed: int = 0,
    ) -> None:
        """Prepare the check with the first `num_probes` prompts (token ids); `max_length` is the engines'."""
        room = max_length - 1  # scoring generates a token
        self._answer_tokens = max(1, min(ANSWER_TOKENS, room // 2))
        kept = max(1, min(PROMPT_TOKENS, room - self._answer_tokens))
        # The end of a long prompt, with the template's opening of the answer.
        self._prompts = [list(ids[-kept:]) for ids in prompts if ids][: config.num_probes]
        if not self._prompts:
            raise ValueError("the consistency gate needs a prompt")
        self._seed, self._fixed = seed, config.max_gap
        self._measures = precision == "bf16" and config.max_gap is None
        self._probes: Batch | None = None
        self._sequences: list[list[int]] = []
        self._syncs = 0
        self.noise = 0.0
        """Mean |bf16 - fp32| of the trainer's own log-probabilities, in nats, as last measured; 0 where none was."""
        self.gap = 0.0
        """Of the last sync."""

    @property
    def bound(self) -> float:
        """The largest gap that is allowed now."""
        return self._fixed or allowed_gap(self.noise)

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps of the gate."""
        return {"noise": self.noise, "bound": self.bound, "gap": self.gap}

    def publish(self, policy: Policy, generators: Generators, version: int) -> dict[str, float]:
        """Give the policy's weights to the generators as `version` and compare. Raises ConsistencyError."""
        self.prepare(generators)
        expected = self.expect(policy)
        sent = policy.publish(generators, version)
        self.require_arrived(sent, generators)
        self.gap = self.measure_gap(expected, generators)
        noise = {"consistency/noise": self.noise} if self._measures else {}
        return {"consistency/logprob_gap": self.gap, "consistency/max_gap": self.bound, **noise}

    def prepare(self, generators: Generators) -> None:
        """Sample the probes, once, before the first sync."""
        if self._probes is not None:
            return
        requests = [
            Request(
                prompt_ids=ids,
                num_branches=1,
                max_tokens=self._answer_tokens,
                temperature=1.0,
                seed=branch_seed(self._seed, -1, f"probe/{index}"),
            )
            for index, ids in enumerate(self._prompts)
        ]
        timeout_s = generators.config.sync_timeout_s
        asked, what = generators.submit(requests), "sampling the gate's probes"
        late = lambda _: generators.late(what, timeout_s)  # noqa: E731
        sampled = wait_all(asked, timeout_s, late=late, look=generators.require_alive)
        answers = [list(branch.token_ids) for (branch,) in sampled]
        groups = [
            Group(sample=Sample(sample_id="probe", prompt=""), prompt_ids=ids, branches=[Branch(token_ids=answer)])
            for ids, answer in zip(self._prompts, answers, strict=True)
        ]
        self._probes = Batch.from_groups(groups)
        self._sequences = [[*ids, *answer] for ids, answer in zip(self._prompts, answers, strict=True)]

    def expect(self, policy: Policy) -> torch.Tensor:
        """Return [N]: the trainer's log-probabilities of the probes' answers, asked while the policy has its device;
        now and then also what its rounding makes of them.
        """
        assert self._probes is not None, "prepare comes first"
        expected = policy.logprobs(self._probes)
        # A gap that comes near the bound is reason to look again.
        if self._measures and (self._syncs % NOISE_EVERY == 0 or self.gap > self.bound / 2):
            exact = policy.logprobs(self._probes, in_fp32=True)
            self.noise = float((expected - exact).abs().mean())
        self._syncs += 1
        return expected

    def require_arrived(self, sent: Mapping[str, int], generators: Generators) -> None:
        """Raise ConsistencyError unless every engine holds what was sent, bit for bit; `sent` has the digests."""
        asked = generators.workers.start(GeneratorWorker.arrived)
        engines = generators.workers.gather(asked, generators.config.sync_timeout_s, "the check of its weights")
        for engine, workers in enumerate(engines):
            for received, faults in workers:
                lost = [f"{name} is not what was sent" for name in sent if received.get(name) != sent[name]]
                if wrong := [*lost, *faults]:
                    raise ConsistencyError(
                        f"engine {engine} does not hold the weights that were sent: {'; '.join(wrong[:3])}"
                        + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
                        + ". It must not sample; start the run again, which goes on from its last checkpoint, and "
                        "report the model's type if it happens twice"
                    )

    def measure_gap(self, expected: torch.Tensor, generators: Generators) -> float:
        """Return the engines' largest mean |difference| from `expected` in nats. Raises ConsistencyError."""
        asked = generators.workers.start(GeneratorWorker.logprobs, self._sequences)
        engines = generators.workers.gather(asked, generators.config.sync_timeout_s, "scoring the gate's probes")
        gaps = [float((expected - self._of_answers(values)).abs().mean()) for values in engines]
        worst = max(gaps, key=lambda gap: (gap != gap, gap))
        if not worst <= self.bound:  # NaN fails too
            raise ConsistencyError(
                f"engine {gaps.index(worst)} and the trainer disagree by {worst:.4g} nats a token on {len(expected)} "
                f"probe tokens (allowed: {self.bound:.4g}{self._reason()}); the generator does not run the weights "
                "that were sent. Check that both use the same precision and model, and whether the model's head is "
                "tied; consistency.max_gap sets the bound"
            )
        return worst

    def _of_answers(self, values: Sequence[Sequence[float]]) -> torch.Tensor:
        """Return [N]: of whole sequences what belongs to the answers."""
        lengths = [len(sequence) - len(ids) for sequence, ids in zip(self._sequences, self._prompts, strict=True)]
        return torch.tensor([value for row, length in zip(values, lengths, strict=True) for value in row[-length:]])

    def _reason(self) -> str:
        if self._fixed is not None:
            return ", as consistency.max_gap says"
        return f", of a trainer whose bf16 makes {self.noise:.4g}" if self.bound > LEAST else ""

"""One model's answers against another's on the same prompts: wins, ties and losses under a judge, and by how much.

Pure arithmetic on the judge's numbers; whose they are and where they come from is the evaluation's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from troupe.statistics import Estimate, estimate_difference, estimate_mean, estimate_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """N answers r against N answers r_ref to the same prompts; every share and mean with its 95 % interval."""

    samples: int
    win_share: Estimate
    """Answers that are better by the tie margin or more."""
    tie_share: Estimate
    """Answers that differ by less than the margin, in either direction."""
    loss_share: Estimate
    """Answers that are worse by the margin or more."""
    win_rate: Estimate
    """#(r > r_ref) / N, without a margin."""
    win_rate_ties_half: Estimate
    """(wins + ties / 2) / N, with the margin; 0.5 is a draw."""
    average_reward: Estimate
    average_reference_reward: Estimate
    reward_improvement: Estimate
    """average_reward - average_reference_reward; the interval is paired."""
    length_ratio: Estimate | None
    """Mean words of the answers / mean words of the others; None where the others have no word."""

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json: a number, or mean, low and high."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def compare(
    rewards: Sequence[float],
    reference_rewards: Sequence[float],
    *,
    words: Sequence[int],
    reference_words: Sequence[int],
    tie_margin: float,
    seed: int = 0,
) -> Comparison:
    """The comparison of N >= 1 pairs of judgements, in the order of the same prompts.

    With margin 0 only equal judgements tie. Raises ValueError when the columns are not of one length, or empty.
    """
    pairs = list(zip(rewards, reference_rewards, words, reference_words, strict=True))
    outcomes = [outcome(reward, reference, tie_margin) for reward, reference, _, _ in pairs]

    def share(values: Sequence[float]) -> Estimate:
        return estimate_mean(values, seed=seed)

    return Comparison(
        samples=len(pairs),
        win_share=share([float(which == "win") for which in outcomes]),
        tie_share=share([float(which == "tie") for which in outcomes]),
        loss_share=share([float(which == "loss") for which in outcomes]),
        win_rate=share([float(reward > reference) for reward, reference, _, _ in pairs]),
        win_rate_ties_half=share([{"win": 1.0, "tie": 0.5, "loss": 0.0}[which] for which in outcomes]),
        average_reward=share(rewards),
        average_reference_reward=share(reference_rewards),
        reward_improvement=estimate_difference(rewards, reference_rewards, seed=seed),
        length_ratio=estimate_ratio(words, reference_words, seed=seed) if any(reference_words) else None,
    )


def outcome(reward: float, reference: float, tie_margin: float) -> Literal["win", "tie", "loss"]:
    """The same margin on both sides, so that swapping the two swaps win and loss.

    >>> outcome(1.05, 1.0, 0.1), outcome(0.95, 1.0, 0.1), outcome(1.2, 1.0, 0.1), outcome(1.0, 1.0, 0.0)
    ('tie', 'tie', 'win', 'tie')
    """
    if reward == reference or abs(reward - reference) < tie_margin:
        return "tie"
    return "win" if reward > reference else "loss"

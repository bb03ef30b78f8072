"""One model's answers against another's on the same prompts: wins, ties and losses under a judge, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from troupe.config.evaluation import EvaluateConfig
from troupe.errors import RewardError
from troupe.evaluation.plan import EvaluationPlan
from troupe.evaluation.scores import Scores, num_words
from troupe.evaluation.stored_answers import AnswersByRepeat
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
        """Return the content of metrics.json: a number, or mean, low and high."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def compare_all(
    config: EvaluateConfig, plan: EvaluationPlan, answers: AnswersByRepeat, scores: Scores
) -> dict[str, Comparison]:
    """Compare every model with the opponent, on the samples where the judge scored both."""
    if config.opponent is None:
        return {}
    reference, others = scores.judged(config.judge_name, config.opponent), answers[config.opponent, 0]
    comparisons = {}
    for name in (one.name for one in plan.candidates if one.name != config.opponent):
        own = scores.judged(config.judge_name, name)
        ids = [sample.sample_id for sample in plan.samples if sample.sample_id in own and sample.sample_id in reference]
        if not ids:
            raise RewardError(f"the judge {config.judge_name} said nothing of {name} and {config.opponent} together")
        comparisons[f"{name} against {config.opponent}"] = compare(
            [own[sample_id] for sample_id in ids],
            [reference[sample_id] for sample_id in ids],
            words=[num_words(answers[name, 0][sample_id]) for sample_id in ids],
            reference_words=[num_words(others[sample_id]) for sample_id in ids],
            tie_margin=config.margin,
            seed=config.seed,
        )
    return comparisons


def compare(
    rewards: Sequence[float],
    reference_rewards: Sequence[float],
    *,
    words: Sequence[int],
    reference_words: Sequence[int],
    tie_margin: float,
    seed: int = 0,
) -> Comparison:
    """Compare N >= 1 pairs of judgements, in the order of the same prompts.

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
    """Return the outcome with the same margin on both sides, so that swapping the two swaps win and loss.

    >>> outcome(1.05, 1.0, 0.1), outcome(0.95, 1.0, 0.1), outcome(1.2, 1.0, 0.1), outcome(1.0, 1.0, 0.0)
    ('tie', 'tie', 'win', 'tie')
    """
    if reward == reference or abs(reward - reference) < tie_margin:
        return "tie"
    return "win" if reward > reference else "loss"

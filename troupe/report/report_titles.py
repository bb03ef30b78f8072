"""What metrics are called in a report, which part of it they belong to, and which of them share a chart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

FAMILIES = ("sft", "reward_model", "dpo")
"""The names before a supervised job's training metrics; `eval/<set>/<metric>` are the same, held out."""
MARGIN = "the better answer's less the other's"
TITLES = {
    "reward/mean": ("Reward", "mean over the step's answers"),
    "reward/std": ("Spread within groups", "standard deviation of a prompt's rewards; at 0 there is nothing to learn"),
    "reward/shaped": ("Reward after shaping", "with clipping, penalties and the KL in it"),
    "reward/clipped_fraction": ("Clipped scores", "share beyond algorithm.score_clip"),
    "reward/missing_fraction": ("Missing judgements", "share of the answers"),
    "reward/reward_model": ("Reward model", "unweighted part; less the reference's score where that is taken off"),
    "reward/reward_model/raw": ("Reward model: answers", "scores of the answers as they are"),
    "reward/reward_model/reference": ("Reward model: references", "scores of the data's own answers"),
    "sft/nll": ("NLL of answers", "nats per token"),
    "sft/loss": ("Loss", "nats per token, prompts included as prompt_weight says"),
    "reward_model/nll": ("NLL of preferences", "nats per pair; guessing costs 0.693"),
    "reward_model/accuracy": ("Accuracy on pairs", "share whose better answer scores higher"),
    "reward_model/margin": ("Margin", f"score, {MARGIN}"),
    "reward_model/chosen": ("Score of the better answers", "mean"),
    "reward_model/rejected": ("Score of the worse answers", "mean"),
    "dpo/loss": ("Loss", "with label smoothing, or IPO's"),
    "dpo/nll": ("NLL of preferences", "nats per pair; guessing costs 0.693"),
    "dpo/accuracy": ("Accuracy on pairs", "share whose better answer has the higher implicit reward"),
    "dpo/margin": ("Margin", f"implicit reward, {MARGIN}"),
    "dpo/chosen_reward": ("Implicit reward of the better answers", "beta times their log-ratio to the reference"),
    "dpo/rejected_reward": ("Implicit reward of the worse answers", "beta times their log-ratio to the reference"),
    "policy/kl": ("KL to the reference", "how far the policy moved, nats per token"),
    "policy/old_kl": ("KL to the sampling policy", "nats per token, since the answers were sampled"),
    "policy/ratio_mean": ("Importance ratio", "mean over tokens; 1 in the first minibatch"),
    "policy/clip_low_fraction": ("Clipped tokens, low side", "share of tokens whose ratio fell below the range"),
    "policy/clip_high_fraction": ("Clipped tokens, high side", "share of tokens whose ratio rose above the range"),
    "policy/dual_clip_fraction": ("Dual-clipped tokens", "share of tokens with a negative advantage and a large ratio"),
    "policy/advantage_max": ("Largest advantage", "in absolute value"),
    "policy/kl_per_answer": ("KL of an answer", "nats, summed over its tokens"),
    "policy/kl_coef": ("KL coefficient", "strength of the pull to the reference"),
    "policy/entropy": ("Entropy", "nats per token; a collapse to 0 ends exploration"),
    "policy/clip_fraction": ("Clipped tokens", "share of tokens whose ratio left the clip range"),
    "policy/grad_norm": ("Gradient norm", "before clipping"),
    "policy/learning_rate": ("Learning rate", ""),
    "policy/loss": ("Loss", ""),
    "value/explained_variance": ("Explained variance", "1: the critic foresees every return; 0: no better than a mean"),
    "value/error": ("Error of the critic", "mean |value - return|"),
    "value/return": ("Return", "mean over tokens"),
    "value/mean": ("Value", "mean over tokens"),
    "value/loss": ("Loss of the critic", ""),
    "value/clip_fraction": ("Clipped values", "share of tokens whose value left the clip range"),
    "rollout/response_tokens": ("Response length", "mean tokens of an answer"),
    "rollout/truncated_fraction": ("Truncated answers", "share that hit the length limit"),
    "rollout/no_signal_fraction": ("Groups without signal", "share whose rewards are all equal"),
    "rollout/lag": ("Lag", "age in steps of the weights that sampled"),
    "data/tokens": ("Tokens of a step", "prompts and answers, as packed"),
    "data/left_out": ("Samples left out", "met so far; too long, or with equal answers"),
    "consistency/logprob_gap": ("Trainer and generator", "mean |difference| of log-probabilities of the same tokens"),
    "tokens_per_second": ("Tokens per second", "over the whole step"),
    "time/step_s": ("Seconds a step", ""),
    "time/publish_s": ("Weight sync", "seconds until the generators have the new weights"),
    "time/sync_s": ("Weight sync", "seconds until the generators have the new weights"),
}
WORDS = {
    "nll": "NLL",
    "kl": "KL",
    "rouge": "ROUGE",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "chosen": "score of the better answers",
    "rejected": "score of the worse answers",
    "chosen_reward": "implicit reward of the better answers",
    "rejected_reward": "implicit reward of the worse answers",
    "grad_norm": "gradient norm",
}
"""Last parts of names that are not read as they are written."""
LEARNING, OPTIMIZER, SPEED, OTHER = "Learning", "Optimizer", "Consistency and speed", "Other metrics"
GROUPS = {
    LEARNING: ("eval/", "reward/", "loss", "train/", *(f"{family}/" for family in FAMILIES)),
    OPTIMIZER: (),
    "Policy": ("policy/",),
    "Critic": ("critic/", "value/"),
    "Rollouts": ("rollout/",),
    SPEED: ("consistency/", "data/", "tokens_per_second", "time/step_s", "time/publish_s", "time/sync_s"),
}
HIDDEN = ("consistency/max_gap", "consistency/noise", "time/")


class Plot(NamedTuple):
    """A chart of one run: a metric, or several that are read together."""

    title: str
    hint: str
    curves: dict[str, str]
    """Metric -> what it is called in the chart; nothing where it is alone."""


TOGETHER = (
    Plot("Scores", "mean of the pairs' answers", {"reward_model/chosen": "better", "reward_model/rejected": "worse"}),
    Plot(
        "Implicit rewards",
        "beta times the log-ratio to the reference",
        {"dpo/chosen_reward": "better", "dpo/rejected_reward": "worse"},
    ),
    Plot(
        "Scores of the reward model",
        "mean of the sampled answers, and of the data's own for the same prompts",
        {"reward/reward_model/raw": "answers", "reward/reward_model/reference": "references"},
    ),
    Plot("Reward", "mean over the step's answers", {"reward/mean": "score", "reward/shaped": "after shaping"}),
    Plot("Returns and values", "mean over tokens", {"value/return": "returns", "value/mean": "values"}),
)
"""Quantities that one chart shows where a run has them all."""


def group_of(name: str) -> str | None:
    """Return the part of the report that a metric belongs to; None for those that are shown elsewhere."""
    if name.endswith(("tokens_per_second", "/tokens")):
        return SPEED
    if name.startswith(FAMILIES) and name.endswith(("/grad_norm", "/learning_rate")):
        return OPTIMIZER
    for group, prefixes in GROUPS.items():
        if name.startswith(prefixes) and name not in HIDDEN:
            return group
    return None if name.startswith(HIDDEN) else OTHER


def title_of(name: str) -> tuple[str, str]:
    """Return (title, hint) of a metric; an unknown one is called by its own name."""
    if name in TITLES:
        return TITLES[name]
    family, _, leaf = name.rpartition("/")
    words = WORDS.get(leaf, leaf.replace("_", " ").strip())
    title = words[:1].upper() + words[1:]
    if name.endswith("tokens_per_second"):
        return f"Tokens per second, {family}", "within the phase"
    if leaf == "tokens":
        return f"Tokens, {family}", "of a step"
    if family.startswith("eval/"):
        return f"{title}, held out", family.removeprefix("eval/").replace("_", " ")
    if family == "reward":
        return f"Reward: {words}", "unweighted part"
    return title, family if family not in FAMILIES else ""


def training_of(name: str, names: Collection[str]) -> str:
    """Return the training metric of which `eval/<set>/<metric>` is the held-out side; any other metric is its own."""
    if not name.startswith("eval/"):
        return name
    leaf = name.rpartition("/")[2]
    return next((f"{family}/{leaf}" for family in FAMILIES if f"{family}/{leaf}" in names), name)


def plots(names: Sequence[str]) -> list[Plot]:
    """Return the charts of a run that logged `names`, in their order.

    Training and held-out curves of a quantity share one, and so do the pairs of `TOGETHER`.
    """
    together = {name: plot for plot in TOGETHER if set(plot.curves) <= set(names) for name in plot.curves}
    members: dict[str, list[str]] = {}
    for name in names:
        training = training_of(name, names)
        members.setdefault(next(iter(together[training].curves)) if training in together else training, []).append(name)
    return [
        _plot(together.get(first) or Plot(*title_of(first), {first: ""}), some, names)
        for first, some in members.items()
    ]


def _plot(plot: Plot, members: Sequence[str], names: Sequence[str]) -> Plot:
    """Return the plot with the held-out side of its curves, each behind its own."""
    curves = {}
    for metric, label in plot.curves.items():
        held_out = [name for name in members if name != metric and training_of(name, names) == metric]
        curves[metric] = label or ("training" if held_out else "")
        for name in held_out:
            where = "held out" if len(held_out) == 1 else f"held out, {name.split('/')[1].replace('_', ' ')}"
            curves[name] = f"{label}, {where}" if label else where
    return Plot(plot.title, plot.hint, curves)

"""What metrics are called in a report, which part of it they belong to, and which of them share a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One curve of a chart."""

    metric: str
    label: str = ""
    """What it is called where a chart has several."""
    color: int = 0
    held_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A chart of one run: a metric, or several that are read together."""

    title: str
    hint: str
    members: Sequence[Member]


TOGETHER = (
    (("reward_model/chosen", "better"), ("reward_model/rejected", "worse"), "Scores", "mean of the pairs' answers"),
    (
        ("dpo/chosen_reward", "better"),
        ("dpo/rejected_reward", "worse"),
        "Implicit rewards",
        "beta times the log-ratio to the reference",
    ),
    (
        ("reward/reward_model/raw", "answers"),
        ("reward/reward_model/reference", "references"),
        "Scores of the reward model",
        "mean of the sampled answers, and of the data's own for the same prompts",
    ),
    (("reward/mean", "score"), ("reward/shaped", "after shaping"), "Reward", "mean over the step's answers"),
    (("value/return", "returns"), ("value/mean", "values"), "Returns and values", "mean over tokens"),
)
"""Two quantities that one chart shows: (metric, label) twice, title, hint."""


def group_of(name: str) -> str | None:
    """The part of the report a metric belongs to; None for those that are shown elsewhere."""
    if name.endswith(("tokens_per_second", "/tokens")):
        return SPEED
    if name.startswith(FAMILIES) and name.endswith(("/grad_norm", "/learning_rate")):
        return OPTIMIZER
    for group, prefixes in GROUPS.items():
        if name.startswith(prefixes) and name not in HIDDEN:
            return group
    return None if name.startswith(HIDDEN) else OTHER


def title_of(name: str) -> tuple[str, str]:
    """(title, hint) of a metric; an unknown one is called by its own name."""
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


def plots(names: Sequence[str]) -> list[Plot]:
    """The charts of a run that logged `names`, in their order.

    Training and held-out curves of a quantity share one, and so do the pairs of `TOGETHER`.
    """
    found, drawn = [], set[str]()
    for name in names:
        if name in drawn:
            continue
        plot = _shared(name, names) or Plot(
            title=title_of(name)[0], hint=title_of(name)[1], members=[Member(metric=name)]
        )
        drawn |= {member.metric for member in plot.members}
        found.append(plot)
    return found


def _shared(name: str, names: Sequence[str]) -> Plot | None:
    """The chart that `name` shares with others of `names`, if there is one."""
    for first, second, title, hint in TOGETHER:
        pair = (first, second)
        members = [
            member
            for color, (metric, label) in enumerate(pair)
            for member in _with_held_out(metric, names, label=label, color=color)
        ]
        if all(metric in names for metric, _ in pair) and name in (member.metric for member in members):
            return Plot(title=title, hint=hint, members=members)
    training = next((other for other in names if name in held_out(other, names)), name)
    members = _with_held_out(training, names, label="training", color=0)
    if len(members) < 2:
        return None
    title, hint = title_of(training)
    return Plot(title=title, hint=hint, members=members)


def held_out(name: str, names: Sequence[str]) -> list[str]:
    """`eval/<set>/<metric>` of a supervised job's training metric `<family>/<metric>`."""
    family, _, leaf = name.partition("/")
    if family not in FAMILIES:
        return []
    return [other for other in names if other.startswith("eval/") and other.rpartition("/")[2] == leaf]


def _with_held_out(name: str, names: Sequence[str], *, label: str, color: int) -> list[Member]:
    """The metric and its held-out side; alone that is told by the colour, beside others by the line."""
    others = held_out(name, names)
    alone = label == "training"
    members = [Member(metric=name, label=label, color=color)]
    for index, other in enumerate(others, start=1):
        where = "held out" if len(others) == 1 else f"held out, {other.split('/')[1].replace('_', ' ')}"
        members.append(
            Member(
                metric=other,
                label=where if alone else f"{label}, {where}",
                color=index if alone else color,
                held_out=True,
            )
        )
    return members

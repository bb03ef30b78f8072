"""A game becomes one branch: the model's tokens as they were sampled, the environment's masked, whatever else is
played.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

import pytest

from tests.actors.scripted import ScriptedGenerators, Speak
from troupe.actors.generator import Request, branch_seed
from troupe.actors.generators import Generators
from troupe.actors.rewarder import Rewarder
from troupe.chat import encode_prompt
from troupe.config.made_data import TicTacToeConfig
from troupe.config.models import GeneratorConfig
from troupe.config.rollout import EnvironmentConfig, RewardConfig, RolloutConfig
from troupe.data import PromptStream, load_data
from troupe.environments.board import CELLS, written
from troupe.environments.turn import Turn
from troupe.errors import DataError, PlayError
from troupe.records import Branch, Group, Sample
from troupe.training.episodes import Episodes
from troupe.training.evaluator import Evaluator
from troupe.training.rollouts import Rollouts
from troupe.training.scratch import train_tokenizer

TOKENIZER = train_tokenizer(["user assistant / . x o <move>A1</move> <move>B2</move> C3"], 320, 512)
GAMES = load_data(TicTacToeConfig(num_train=12, num_heldout=6, board="line"))
HERE = "tests.training.test_episodes"


def last_board(prompt: str) -> str:
    return re.findall(r"(?:/(?: [.xo]){3} ?){3}", prompt)[-1].replace("/", "").replace(" ", "")


def a_legal_move(prompt: str, rng: random.Random) -> str:
    board = last_board(prompt)
    return written(rng.choice([cell for cell, taken in zip(CELLS, board, strict=True) if taken == "."]), "move")


def played(
    samples: Sequence[Sample],
    speak: Speak,
    *,
    fn: str = "tic_tac_toe",
    group_size: int = 2,
    max_tokens: int = 400,
    order_seed: int = 0,
    **settings: Any,
) -> tuple[list[Group], ScriptedGenerators]:
    generators = ScriptedGenerators(TOKENIZER, speak, order_seed=order_seed)
    episodes = Episodes(EnvironmentConfig(fn=fn, **settings), generators, TOKENIZER)  # type: ignore[arg-type]
    try:
        return submitted(episodes, samples, group_size, max_tokens), generators
    finally:
        episodes.shutdown()


def submitted(
    episodes: Episodes, samples: Sequence[Sample], group_size: int, max_tokens: int, reader: Any = TOKENIZER
) -> list[Group]:
    requests = [
        Request(
            prompt_ids=encode_prompt(reader, sample),
            num_branches=group_size,
            max_tokens=max_tokens,
            temperature=1.0,
            seed=branch_seed(0, 1, sample.sample_id),
        )
        for sample in samples
    ]
    return [group.result(60) for group in episodes.submit(requests, samples)]


def branches_of(groups: Sequence[Group]) -> list[Branch]:
    return [branch for group in groups for branch in group.branches]


def turns_of(branch: Branch, tokenizer: Any = TOKENIZER) -> list[tuple[bool, str]]:
    """(whether the model said it, text) of each stretch of equal mask."""
    stretches: list[tuple[bool, list[int]]] = []
    for token, trained in zip(branch.token_ids, branch.loss_mask or (), strict=True):
        if not stretches or stretches[-1][0] != trained:
            stretches.append((trained, []))
        stretches[-1][1].append(token)
    return [(trained, tokenizer.decode(ids)) for trained, ids in stretches]


def branch_turns(branch: Branch) -> list[tuple[str, bool, Sequence[int]]]:
    """(who spoke, whether it is trained, token ids) of each turn that the branch names."""
    found, start = [], 0
    for who, count in branch.turns:
        ids, mask = branch.token_ids[start : start + count], set((branch.loss_mask or ())[start : start + count])
        assert len(mask) == 1
        found.append((who, mask.pop(), ids))
        start += count
    assert start == len(branch.token_ids)
    return found


# -- one branch --------------------------------------------------------------------------------------------------


def test_a_game_is_the_conversation_as_the_template_shows_it_and_only_the_models_tokens_are_trained() -> None:
    groups, _generators = played(GAMES.train[:4], a_legal_move)
    assert [group.sample for group in groups] == GAMES.train[:4]
    for group in groups:
        assert list(group.prompt_ids) == encode_prompt(TOKENIZER, group.sample)
        for branch in group.branches:
            messages = list(group.sample.prompt)
            for index, (trained, text) in enumerate(turns_of(branch)):
                assert trained == (index % 2 == 0)  # the model begins and has the last word
                if trained:
                    assert re.fullmatch(r"<move>[ABC][123]</move><\|im_end\|>", text)
                    messages.append({"role": "assistant", "content": text.removesuffix("<|im_end|>")})
                else:
                    shown = re.fullmatch(r"\n<\|im_start\|>user\n(/ .*)<\|im_end\|>\n<\|im_start\|>assistant\n", text)
                    messages.append({"role": "user", "content": shown[1]})
            whole = TOKENIZER.apply_chat_template(messages, tokenize=True, return_dict=False)
            newline = TOKENIZER("\n")["input_ids"]
            assert [*group.prompt_ids, *branch.token_ids, *newline] == whole
            assert branch.text == TOKENIZER.decode(branch.token_ids, skip_special_tokens=True)
            assert branch.raw_text == TOKENIZER.decode(branch.token_ids)
            assert branch.finish_reason == "stop"
            said = [value for value, trained in zip(branch.logprobs, branch.loss_mask, strict=True) if trained]
            heard = [value for value, trained in zip(branch.logprobs, branch.loss_mask, strict=True) if not trained]
            assert all(value < 0 for value in said)
            assert set(heard) <= {0.0}
            assert branch.num_sampled == len(said)
            shown = [(trained, TOKENIZER.decode(ids)) for _, trained, ids in branch_turns(branch)]
            assert shown == turns_of(branch)
            assert [who for who, *_ in branch_turns(branch)] == ["assistant", "user"] * (len(shown) // 2) + [
                "assistant"
            ]


def test_each_token_of_the_model_keeps_the_version_that_sampled_it() -> None:
    generators = ScriptedGenerators(TOKENIZER, a_legal_move)
    generators.version, generators.syncs = 4, 1
    episodes = Episodes(EnvironmentConfig(fn="tic_tac_toe"), generators, TOKENIZER)  # type: ignore[arg-type]
    (branch,) = submitted(episodes, GAMES.train[:1], 1, 400)[0].branches
    episodes.shutdown()
    labels = [0] * len(branch.token_ids)
    for span in branch.weight_versions:
        labels[span.start : span.end] = [span.version] * (span.end - span.start)
    # Of the nine tokens of a move the first four are version 4, the others 5; the environment's have none.
    assert [label > 0 for label in labels] == list(branch.loss_mask)
    assert Counter(labels)[4] * 5 == Counter(labels)[5] * 4 > 0
    assert branch.oldest_version == 4


def test_rounds_ask_for_every_game_that_is_not_over_in_one_batch_and_all_seeds_differ() -> None:
    groups, generators = played(GAMES.train, a_legal_move, group_size=3)
    turns = Counter()
    for branch in branches_of(groups):
        for index in range(sum(trained for trained, _ in turns_of(branch))):
            turns[index] += 1
    assert [len(asked) for asked in generators.rounds] == [turns[index] for index in range(len(generators.rounds))]
    assert turns[0] == 36
    asked = [request for one in generators.rounds for request in one]
    assert len({request.seed for request in asked}) == len(asked)
    # What is asked is the prompt and all that was said; the limit of the whole game bounds the last turns.
    by_prompt = {tuple(request.prompt_ids) for request in asked}
    for group in groups:
        for branch in group.branches:
            ends = [
                i for i, trained in enumerate(branch.loss_mask) if trained and (i == 0 or not branch.loss_mask[i - 1])
            ]
            assert {(*group.prompt_ids, *branch.token_ids[:end]) for end in ends} <= by_prompt


def test_games_repeat_to_the_bit_whatever_finishes_first() -> None:
    first, _ = played(GAMES.train, a_legal_move, order_seed=1)
    again, _ = played(GAMES.train, a_legal_move, order_seed=2)
    assert first == again
    assert len({tuple(branch.token_ids) for branch in branches_of(first)}) > 12


def test_batches_that_run_alone_are_played_one_after_the_other() -> None:
    generators = ScriptedGenerators(TOKENIZER, a_legal_move)
    episodes = Episodes(EnvironmentConfig(fn="tic_tac_toe"), generators, TOKENIZER)  # type: ignore[arg-type]
    request = Request(
        prompt_ids=encode_prompt(TOKENIZER, GAMES.train[0]), num_branches=1, max_tokens=400, temperature=1.0, seed=0
    )
    pending = [episodes.submit([request], GAMES.train[:1])[0] for _ in range(3)]
    groups = [group.result(60) for group in pending]
    episodes.shutdown()
    assert groups[0] == groups[1] == groups[2]
    lengths = [len(asked[0].prompt_ids) for asked in generators.rounds]
    third = len(lengths) // 3
    assert lengths == lengths[:third] * 3  # not interleaved


# -- ends --------------------------------------------------------------------------------------------------------


def test_scores_are_the_environments_with_its_parts() -> None:
    groups, _ = played(GAMES.train, a_legal_move)
    for branch in branches_of(groups):
        score = branch.outcome
        outcome = [name for name in ("win", "draw", "loss") if score.parts[f"environment/{name}"]]
        assert score.value == score.parts["environment"] == {"win": 1.0, "draw": 0.5, "loss": 0.0}[outcome[0]]
        assert score.parts["environment/failed"] == 0
        assert 2 <= score.parts["environment/num_moves"] <= 5  # o may lose behind its second


@pytest.mark.parametrize("max_tokens", [9, 30, 31, 60, 90])
def test_a_game_that_no_longer_fits_ends_as_truncated(max_tokens: int) -> None:
    """A move takes 9 tokens here and must have one left; a turn of the environment is wanted only in front of a
    move.
    """
    groups, generators = played(GAMES.train, a_legal_move, max_tokens=max_tokens, unfinished_reward=-0.25)
    cut = 0
    for branch, score in ((branch, branch.outcome) for branch in branches_of(groups)):
        assert len(branch.token_ids) <= max_tokens
        assert branch.loss_mask[-1]
        if branch.truncated and not score.parts["environment/invalid_move"]:
            assert score.value == -0.25
            cut += 1
    assert cut > 0
    for asked in generators.rounds:
        assert all(
            len(request.prompt_ids) + request.max_tokens <= len(encode_prompt(TOKENIZER, GAMES.train[0])) + max_tokens
            for request in asked
        )


def test_a_game_ends_after_max_turns() -> None:
    groups, generators = played(GAMES.train[:3], a_legal_move, max_turns=2)
    assert len(generators.rounds) == 2
    assert all(branch.truncated and sum(t for t, _ in turns_of(branch)) == 2 for branch in branches_of(groups))


def test_an_answer_that_was_cut_off_is_judged_and_its_missing_end_is_not_the_models() -> None:
    def rambling(prompt: str, rng: random.Random) -> str:
        return a_legal_move(prompt, rng) + " and so on and so on"

    groups, _ = played(GAMES.train[:2], rambling, max_turn_tokens=10)
    branch = groups[0].branches[0]
    stretches = turns_of(branch)
    assert len(stretches) > 2
    assert [text.startswith("<|im_end|>\n") for trained, text in stretches if not trained] == [True] * (
        len(stretches) // 2
    )
    assert branch.finish_reason == "length"  # its last answer was cut off, too


def test_an_illegal_move_is_an_outcome() -> None:
    groups, generators = played(GAMES.train[:2], lambda prompt, rng: "<move>Z9</move>")
    assert len(generators.rounds) == 1
    for score in (branch.outcome for branch in branches_of(groups)):
        assert score.value == -1.0
        assert score.parts["environment/invalid_move"] == 1


# -- environments of one's own -----------------------------------------------------------------------------------


class Asking:
    """Begins with a number that its seed draws, and ends after one answer."""

    def reset(self, sample: Sample, seed: int) -> str | None:
        number = seed % 100
        return f"Say {number}." if number % 2 else None

    def step(self, answer: str) -> Turn:
        return Turn(done=True, reward=1.0)


def test_openings_that_differ_between_branches_are_their_first_masked_turn() -> None:
    prompt = [{"role": "system", "content": "Do as you are told."}]
    sample = Sample(sample_id="s", prompt=prompt)
    groups, _ = played([sample], lambda text, rng: "Yes.", fn=f"{HERE}:Asking", group_size=8)
    openings = set()
    for branch in groups[0].branches:
        (heard, opening), (said, answer) = turns_of(branch)
        assert (heard, said, answer) == (False, True, "Yes.<|im_end|>")
        assert re.fullmatch(r"(<\|im_start\|>user\nSay \d+\.<\|im_end\|>\n)?<\|im_start\|>assistant\n", opening)
        openings.add(opening)
    assert TOKENIZER.decode(groups[0].prompt_ids) == "<|im_start|>system\nDo as you are told.<|im_end|>\n"
    assert "<|im_start|>assistant\n" in openings
    assert len(openings) > 2


class Slow:
    """Waits as a web page would."""

    closed: ClassVar[list[int]] = []

    async def reset(self, sample: Sample, seed: int) -> None:
        await asyncio.sleep(0.05)

    async def step(self, answer: str) -> Turn:
        await asyncio.sleep(30 if answer == "for ever" else 0.05)
        return Turn(done=True, reward=1.0)

    async def close(self) -> None:
        self.closed.append(1)


CHAT = [Sample(sample_id=f"s{i}", prompt=[{"role": "user", "content": "Go."}]) for i in range(10)]


def test_slow_environments_wait_at_the_same_time_and_are_closed() -> None:
    Slow.closed.clear()
    started = time.monotonic()
    groups, _ = played(CHAT, lambda text, rng: "Yes.", fn=f"{HERE}:Slow", group_size=10)
    assert time.monotonic() - started < 100 * 0.1 / 2  # 100 games of 0.1 s one after the other would take 10 s
    assert len(Slow.closed) == len(branches_of(groups)) == 100


def test_a_call_that_takes_too_long_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    def speak(text: str, rng: random.Random) -> str:
        return "for ever"

    groups, _ = played(CHAT[:1], speak, fn=f"{HERE}:Slow", timeout_s=0.2, group_size=1, max_error_fraction=1.0)
    assert groups[0].branches[0].outcome.parts == {"environment": 0.0, "environment/failed": 1.0}
    assert "raised TimeoutError" in caplog.text


class Brittle:
    """Breaks where it is asked to."""

    opened: ClassVar[list[int]] = []
    closed: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.opened.append(1)

    def close(self) -> None:
        self.closed.append(1)

    def reset(self, sample: Sample, seed: int) -> None:
        if sample.sample_id == "s0":
            raise KeyError("no such level")

    def step(self, answer: str) -> Turn:
        if "break" in answer:
            raise RuntimeError("the engine of the game fell over")
        return Turn(done=True, reward=1.0) if "win" in answer else "a text"  # type: ignore[return-value]


def test_a_game_whose_environment_raises_is_an_outcome_that_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        groups, _ = played(CHAT, lambda text, rng: "win", fn=f"{HERE}:Brittle", group_size=2, error_reward=-0.5)
    scores = [[branch.outcome.value for branch in group.branches] for group in groups]
    assert scores == [[-0.5, -0.5]] + [[1.0, 1.0]] * 9  # 2 of 20, not more than a tenth
    assert groups[0].branches[0].outcome.parts["environment/failed"] == 1
    (branch, _) = groups[0].branches
    assert (list(branch.loss_mask), list(branch.logprobs)) == ([False], [0.0])
    assert "raised KeyError: 'no such level'" in caplog.text
    assert "on sample s0 at turn 0; the game ends with the reward -0.5" in caplog.text


@pytest.mark.parametrize(
    ("answer", "settings", "sentence"),
    [
        ("break", {}, r"[345] of 20 games failed \(at most 10% may.*RuntimeError: the engine of the game fell over"),
        ("lose", {}, r"[345] of 20 games failed .* TypeError: step must return a Turn, got a str"),
        ("win", {"on_error": "stop"}, r"raised KeyError: 'no such level' \(test_episodes.py line \d+\) on sample s0"),
    ],
)
def test_too_many_failures_or_a_strict_recipe_stop_the_run_in_one_sentence(
    answer: str, settings: dict[str, Any], sentence: str
) -> None:
    Brittle.opened.clear()
    Brittle.closed.clear()
    with pytest.raises(PlayError, match=sentence) as failed:
        played(CHAT, lambda text, rng: answer, fn=f"{HERE}:Brittle", group_size=2, **settings)
    assert "\n" not in str(failed.value)
    assert len(Brittle.opened) == len(Brittle.closed) + 1  # of all games; one more was built to check the recipe


def test_prompts_without_turns_are_refused() -> None:
    with pytest.raises(DataError, match="s is plain text; a game needs prompts that are messages"):
        played([Sample(sample_id="s", prompt="Go.")], lambda text, rng: "A1")


# -- in rollouts and evaluations ---------------------------------------------------------------------------------


def brevity(sample: Sample, branch: Branch) -> float:
    return -0.01 * branch.num_sampled


def rollouts_of(generators: ScriptedGenerators, max_lag: int = 0) -> tuple[Rollouts, Episodes]:
    episodes = Episodes(EnvironmentConfig(fn="tic_tac_toe"), generators, TOKENIZER)  # type: ignore[arg-type]
    rollouts = Rollouts(
        PromptStream(GAMES.train, 0),
        TOKENIZER,
        generators,  # type: ignore[arg-type]
        Rewarder([RewardConfig(fn=f"{HERE}:brevity")]),
        RolloutConfig(prompts_per_step=3, group_size=4, max_response_tokens=400, timeout_s=60, max_lag=max_lag),
        seed=0,
        last_step=4,
        requires_group=True,
        answers=episodes,
    )
    return rollouts, episodes


def test_a_step_of_games_adds_the_rewards_and_counts_both_sides_tokens() -> None:
    generators = ScriptedGenerators(TOKENIZER, a_legal_move)
    rollouts, episodes = rollouts_of(generators)
    rollout = rollouts.next_batch(1)
    episodes.shutdown()
    branches = branches_of(rollout.groups)
    for branch, score in zip(branches, [s for group in rollout.groups for s in group.scores], strict=True):
        assert score.value == pytest.approx(score.parts["environment"] - 0.01 * branch.num_sampled)
        assert score.parts["brevity"] == pytest.approx(-0.01 * branch.num_sampled)
    sampled = sum(sum(branch.loss_mask) for branch in branches)
    metrics = rollout.metrics
    assert metrics["rollout/tokens"] == sampled
    assert metrics["rollout/response_tokens"] == pytest.approx(sampled / 12)
    assert metrics["rollout/environment_tokens"] == pytest.approx(
        sum(len(b.token_ids) for b in branches) / 12 - sampled / 12
    )
    outcomes = sum(metrics[f"reward/environment/{name}"] for name in ("win", "draw", "loss"))
    assert outcomes == pytest.approx(1.0)
    assert metrics["reward/environment/failed"] == 0


def test_games_are_the_same_whether_or_not_steps_are_played_ahead() -> None:
    def steps(max_lag: int) -> list[list[list[int]]]:
        generators = ScriptedGenerators(TOKENIZER, a_legal_move)
        generators.version = 3  # fresh weights for all
        rollouts, episodes = rollouts_of(generators, max_lag)
        collected = [rollouts.next_batch(step) for step in (1, 2, 3, 4)]
        episodes.shutdown()
        assert set(generators.alone) == {max_lag == 0}
        return [[list(branch.token_ids) for branch in branches_of(rollout.groups)] for rollout in collected]

    assert steps(0) == steps(2)


def test_an_evaluation_is_the_mean_over_the_held_out_games() -> None:
    generators = ScriptedGenerators(TOKENIZER, a_legal_move)
    episodes = Episodes(EnvironmentConfig(fn="tic_tac_toe"), generators, TOKENIZER)  # type: ignore[arg-type]
    evaluator = Evaluator(
        {GAMES.name: GAMES.heldout},
        TOKENIZER,
        generators,  # type: ignore[arg-type]
        Rewarder([]),
        max_prompt_tokens=100,
        max_response_tokens=400,
        answers=episodes,
    )
    first, again = evaluator.evaluate(), evaluator.evaluate()
    episodes.shutdown()
    assert first.metrics == again.metrics  # the same opponents each time
    wins = [group.scores[0].parts["environment/win"] for group in first.groups["tic_tac_toe"]]
    assert len(wins) == 6
    assert first.metrics["eval/tic_tac_toe/environment/win"] == pytest.approx(sum(wins) / 6)
    assert "user\n/" in first.rows()["tic_tac_toe"][0]["text"]


# -- while weights are on their way ------------------------------------------------------------------------------


class QuietGroup:
    """A group of one engine that takes every call and never answers."""

    size = 1

    def __init__(self) -> None:
        self.called: list[str] = []

    def submit(self, rank: int, method: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        self.called.append(method.__name__)
        return Future()

    def start(self, method: Any, *args: Any) -> list[Future[Any]]:
        return [self.submit(0, method, *args)]

    def gather(self, futures: Sequence[Future[Any]], timeout_s: float, phase: str) -> list[Any]:
        return [None]

    def shutdown(self) -> None:
        pass


def test_a_round_that_is_asked_during_a_sync_waits_for_the_new_weights() -> None:
    group = QuietGroup()
    generators = Generators(group, GeneratorConfig(), sleeps=False)  # type: ignore[arg-type]
    request = Request(prompt_ids=[1], num_branches=1, max_tokens=1, temperature=1.0, seed=0)
    generators.pause()
    asking = threading.Thread(target=generators.submit, args=([request],), daemon=True)
    asking.start()
    asking.join(0.1)
    assert asking.is_alive()
    assert group.called == []  # nothing ran, so nothing had to be paused, and nothing has begun
    generators.receive(1)
    asking.join(10)
    assert group.called == ["receive", "submit"]

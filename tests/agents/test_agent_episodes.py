"""An unmodified agent over the address: what it was answered is what is trained, and what it does wrong is its own loss."""

from __future__ import annotations

import asyncio
import random
import re
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.actors.scripted import ScriptedGenerators
from tests.serving.served_run import TEMPLATE
from tests.training.test_episodes import GAMES, TOKENIZER, a_legal_move, last_board, submitted, turns_of
from troupe.actors.rewarder import Rewarder
from troupe.agents.episodes import AgentEpisodes
from troupe.chat import ChatForm, ChatSettings
from troupe.config.agents import AgentConfig
from troupe.config.rollout import EnvironmentConfig, RewardConfig
from troupe.environments.tic_tac_toe import TicTacToe
from troupe.errors import ConfigError, PlayError, WorkerError
from troupe.records import Branch, Group, Sample
from troupe.training.episodes import Episodes
from troupe.training.evaluator import Evaluation, Evaluator

HERE = "tests.agents.test_agent_episodes"
FORM = ChatForm(TOKENIZER, ChatSettings(template=TEMPLATE))
SAMPLES = [
    Sample(sample_id=f"s{i}", prompt=[{"role": "user", "content": f"Count to {i}."}], gold=str(i)) for i in range(3)
]


def count(prompt: str, rng: random.Random) -> str:
    return f"{len(re.findall('assistant', prompt))} {rng.choice('abc')}"


def ran(
    fn: str | None,
    *,
    speak: Callable[[str, random.Random], str] = count,
    samples: list[Sample] = SAMPLES,
    group_size: int = 2,
    reader: Any = FORM,
    max_tokens: int = 400,
    max_length: int = 1000,
    **settings: Any,
) -> tuple[list[Group], ScriptedGenerators]:
    generators = ScriptedGenerators(TOKENIZER, speak)
    config = AgentConfig(fn=None if fn is None else f"{HERE}:{fn}", **settings)
    episodes = AgentEpisodes(config, generators, reader, max_length=max_length)  # type: ignore[arg-type]
    try:
        return submitted(episodes, samples, group_size, max_tokens, reader), generators  # type: ignore[arg-type]
    finally:
        episodes.shutdown()


def said(branch: Branch) -> list[str]:
    return [text.removesuffix("<|im_end|>") for trained, text in turns_of(branch) if trained]


# -- agents ------------------------------------------------------------------------------------------------------


async def checks_itself(client: openai.AsyncOpenAI, sample: Sample) -> dict[str, float]:
    turns: list[Any] = list(sample.prompt)
    for _ in range(3):
        answer = await client.chat.completions.create(model="policy", messages=turns, temperature=0.2)
        turns += [{"role": "assistant", "content": answer.choices[0].message.content}]
        turns += [{"role": "user", "content": "Are you sure?"}]
    return {"reward": 0.5, "turns": 3}


def compacts(client: openai.OpenAI, sample: Sample) -> float:
    """Ask twice, then go on from a summary: another conversation of the same episode."""
    first = client.chat.completions.create(model="policy", messages=list(sample.prompt))  # type: ignore[arg-type]
    turns: list[Any] = [*sample.prompt, {"role": "assistant", "content": first.choices[0].message.content}]
    client.chat.completions.create(model="policy", messages=[*turns, {"role": "user", "content": "And?"}])
    summary = [{"role": "user", "content": f"You said {first.choices[0].message.content}. Go on."}]
    client.chat.completions.create(model="policy", messages=summary)  # type: ignore[arg-type]
    return 1.0


async def streams(client: openai.AsyncOpenAI, sample: Sample) -> bool:
    pieces, used = [], None
    async for chunk in await client.chat.completions.create(
        model="policy",
        messages=sample.prompt,
        stream=True,
        stream_options={"include_usage": True},  # type: ignore[arg-type]
    ):
        used = chunk.usage or used
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    whole = await client.completions.create(model="policy", prompt="Once upon", max_tokens=5, logprobs=0)
    ids = await client.completions.create(model="policy", prompt=[5, 6, 7], max_tokens=5)
    assert whole.choices[0].logprobs is not None
    assert used is not None
    return bool("".join(pieces)) and used.completion_tokens > 0 and len(ids.choices[0].text) > 0


LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


async def uses_tools(client: openai.AsyncOpenAI, sample: Sample) -> float:
    turns: list[Any] = list(sample.prompt)
    while True:
        answer = (await client.chat.completions.create(model="policy", messages=turns, tools=[LOOK])).choices[0]  # type: ignore[list-item]
        if answer.finish_reason != "tool_calls":
            return 1.0
        turns.append(answer.message)
        turns += [
            {"role": "tool", "tool_call_id": call.id, "content": "18"} for call in answer.message.tool_calls or ()
        ]


async def plays(client: openai.AsyncOpenAI, sample: Sample) -> float:
    game = TicTacToe()
    game.reset(sample, 0)
    turns: list[Any] = list(sample.prompt)
    reward = 0.0
    while True:
        answer = await client.chat.completions.create(model="policy", messages=turns, max_tokens=128)
        text = answer.choices[0].message.content or ""
        turn = game.step(text)
        reward += turn.reward
        if turn.done:
            return reward
        turns += [{"role": "assistant", "content": text}, {"role": "user", "content": turn.observation}]


def of_a_library(client: openai.OpenAI, sample: Sample) -> float:
    """The documentation's agent, smolagents' own: it writes code until that gives an answer."""
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    (source,) = re.findall(r"```python\n([^`]*def run.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(source, names)
    return float(names["run"](client, sample))


async def silent(client: openai.AsyncOpenAI, sample: Sample) -> float:
    return 1.0


async def scoreless(client: openai.AsyncOpenAI, sample: Sample) -> None:
    await client.chat.completions.create(model="policy", messages=sample.prompt)  # type: ignore[arg-type]


async def wild(client: openai.AsyncOpenAI, sample: Sample) -> float:
    while True:
        await client.chat.completions.create(model="policy", messages=sample.prompt)  # type: ignore[arg-type]


async def elsewhere(client: openai.AsyncOpenAI, sample: Sample) -> float:
    await client.chat.completions.create(model="gpt-4o", messages=sample.prompt)  # type: ignore[arg-type]
    return 1.0


async def foreign(client: openai.AsyncOpenAI, sample: Sample) -> float:
    await client.completions.create(model="policy", prompt=[1, 10**6])
    return 1.0


async def hangs(client: openai.AsyncOpenAI, sample: Sample) -> float:
    await asyncio.sleep(3600)
    return 1.0


def hangs_in_a_thread(client: openai.OpenAI, sample: Sample) -> float:
    threading.Event().wait()
    return 1.0


async def forces(client: openai.AsyncOpenAI, sample: Sample) -> float:
    await client.chat.completions.create(
        model="policy",
        messages=sample.prompt,
        tools=[LOOK],
        tool_choice="required",  # type: ignore[arg-type, list-item]
    )
    return 1.0


async def asks_for_several(client: openai.AsyncOpenAI, sample: Sample) -> float:
    with pytest.raises(openai.RateLimitError, match="asks for 1000000 more"):
        await client.chat.completions.create(model="policy", messages=sample.prompt, n=10**6)  # type: ignore[arg-type]
    answers = await client.chat.completions.create(model="policy", messages=sample.prompt, n=3)  # type: ignore[arg-type]
    return float(len(answers.choices))


async def is_brief(client: openai.AsyncOpenAI, sample: Sample) -> dict[str, float]:
    short = await client.chat.completions.create(model="policy", messages=sample.prompt, max_tokens=2)  # type: ignore[arg-type]
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    return {"reward": 1.0, "tokens": short.usage.completion_tokens}


async def reads_too_much(client: openai.AsyncOpenAI, sample: Sample) -> float:
    """Show the model more than it reads, and then, since that is refused, less."""
    turns: list[Any] = list(sample.prompt)
    answer = await client.chat.completions.create(model="policy", messages=turns)
    turns.append({"role": "assistant", "content": answer.choices[0].message.content})
    page: Any = {"role": "user", "content": "word " * 2000}
    with pytest.raises(openai.BadRequestError, match="and this model reads 1000"):
        await client.chat.completions.create(model="policy", messages=[*turns, page])
    note: Any = {"role": "user", "content": "word"}
    await client.chat.completions.create(model="policy", messages=[*turns, note])
    return 1.0


async def reads_too_much_at_last(client: openai.AsyncOpenAI, sample: Sample) -> float:
    turns: list[Any] = list(sample.prompt)
    answer = await client.chat.completions.create(model="policy", messages=turns)
    turns.append({"role": "assistant", "content": answer.choices[0].message.content})
    await client.chat.completions.create(model="policy", messages=[*turns, {"role": "user", "content": "word " * 2000}])
    return 1.0


async def has_a_system_prompt(client: openai.AsyncOpenAI, sample: Sample) -> float:
    rules: Any = {"role": "system", "content": f"You are number {random.random()}."}
    await client.chat.completions.create(model="policy", messages=[rules, *sample.prompt])
    return 1.0


async def fails_on_s1(client: openai.AsyncOpenAI, sample: Sample) -> float:
    if sample.sample_id == "s1":
        raise KeyError("map")
    await client.chat.completions.create(model="policy", messages=sample.prompt)  # type: ignore[arg-type]
    return 1.0


async def asks_in_contexts(client: openai.AsyncOpenAI, sample: Sample) -> dict[str, float]:
    """Begin as many contexts as the sample says, and go back to the first one at the end."""
    turns: list[Any] = []
    for context in range(int(sample.gold or 0) + 1):
        asked: list[Any] = [{"role": "user", "content": f"Context {context}"}]
        answer = await client.chat.completions.create(model="policy", messages=asked)
        turns = turns or [*asked, {"role": "assistant", "content": answer.choices[0].message.content}]
    await client.chat.completions.create(model="policy", messages=[*turns, {"role": "user", "content": "And?"}])
    return {"reward": float(sample.gold or 0), "contexts": context + 1}


AT_ONCE: list[int] = [0, 0]
"""Episodes of `counts` that run, and the most that ever did."""


async def counts(client: openai.AsyncOpenAI, sample: Sample) -> float:
    AT_ONCE[0] += 1
    AT_ONCE[1] = max(AT_ONCE)
    await client.chat.completions.create(model="policy", messages=sample.prompt)  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    AT_ONCE[0] -= 1
    return 1.0


# -- tokens ------------------------------------------------------------------------------------------------------


def test_a_conversation_is_one_branch_whose_tokens_are_those_that_were_sampled() -> None:
    groups, generators = ran("checks_itself")
    sampled = {tuple(request.prompt_ids) for batch in generators.rounds for request in batch}
    for group in groups:
        assert len(group.branches) == 2
        assert list(group.prompt_ids) == FORM.prompt(group.sample)
        for branch in group.branches:
            assert len(said(branch)) == 3
            assert branch.text == said(branch)[-1]
            assert branch.outcome is not None
            assert branch.outcome.value == 0.5
            assert branch.outcome.parts == {
                "agent": 0.5, "agent/turns": 3, "agent/requests": 3, "agent/lines": 1, "agent/failed": 0,
            }  # fmt: skip
            assert branch.loss_mask is not None
            begins = [i for i, each in enumerate(branch.loss_mask) if each and not (i and branch.loss_mask[i - 1])]
            assert all((*group.prompt_ids, *branch.token_ids[:begin]) in sampled for begin in begins)


def test_another_context_is_a_further_branch_of_the_same_score() -> None:
    groups, _ = ran("compacts", group_size=2)
    for group in groups:
        assert len(group.branches) == 4
        assert {branch.outcome.value for branch in group.branches if branch.outcome} == {1.0}
        texts = [TOKENIZER.decode([*group.prompt_ids, *branch.token_ids]) for branch in group.branches]
        assert sorted("Go on" in text for text in texts) == [False, False, True, True]
        assert sorted(len(said(branch)) for branch in group.branches) == [1, 1, 2, 2]


def branches(groups: list[Group]) -> list[Branch]:
    return [branch for group in groups for branch in group.branches]


def test_several_answers_to_one_request_are_branches_of_their_own_with_seeds_of_their_own() -> None:
    groups, generators = ran("asks_for_several", samples=SAMPLES[:1])
    assert [branch.outcome.value for branch in branches(groups) if branch.outcome] == [3.0] * 6
    assert {branch.outcome.parts["agent/lines"] for branch in branches(groups) if branch.outcome} == {3}
    asked = [request for batch in generators.rounds for request in batch]
    assert len({request.seed for request in asked}) == len(asked) == 6


def test_an_answer_is_as_short_as_the_agent_wants_it() -> None:
    groups, _ = ran("is_brief", samples=SAMPLES[:1])
    for branch in branches(groups):
        assert branch.outcome is not None
        assert branch.outcome.parts["agent/tokens"] == len(branch.token_ids) == 2
        assert branch.truncated


@pytest.mark.parametrize(("fn", "turns"), [("reads_too_much", 2), ("reads_too_much_at_last", 1)])
def test_what_is_longer_than_the_model_reads_is_refused_and_never_trained_on(fn: str, turns: int) -> None:
    groups, _ = ran(fn, samples=SAMPLES[:1], max_error_fraction=1.0)
    for group in groups:
        assert len(group.branches) == 2  # the shorter turn goes on from where the longer one was refused
        for branch in group.branches:
            assert len(group.prompt_ids) + len(branch.token_ids) <= 1000
            assert len(said(branch)) == turns
            assert branch.loss_mask is not None
            assert branch.loss_mask[-1]


def test_the_prompt_of_a_group_is_what_its_episodes_have_in_common() -> None:
    groups, _ = ran("has_a_system_prompt", samples=SAMPLES[:1], group_size=4)
    (group,) = groups
    assert TOKENIZER.decode(group.prompt_ids).startswith("<|im_start|>system\nYou are number 0.")
    wholes = [TOKENIZER.decode([*group.prompt_ids, *branch.token_ids]) for branch in group.branches]
    assert all("Count to 0.<|im_end|>" in whole for whole in wholes)
    for branch in group.branches:
        assert branch.loss_mask is not None
        assert [trained for trained, _ in turns_of(branch)] == [False, True]  # the rest of its prompt, and its answer


def test_an_episode_that_failed_before_it_asked_is_a_branch_that_trains_nothing() -> None:
    groups, _ = ran("fails_on_s1", max_error_fraction=0.5, error_reward=-1.0)
    assert [[branch.outcome.value for branch in group.branches if branch.outcome] for group in groups] == [
        [1.0, 1.0],
        [-1.0, -1.0],
        [1.0, 1.0],
    ]
    for branch in groups[1].branches:
        assert branch.loss_mask == [False]
        assert branch.num_sampled == 0
        assert branch.text == ""
    assert list(groups[1].prompt_ids) == FORM.prompt(SAMPLES[1])


def test_no_more_episodes_run_than_the_config_lets() -> None:
    AT_ONCE[:] = [0, 0]
    ran("counts", group_size=4, max_concurrency=3)
    assert AT_ONCE == [0, 3]


def test_streams_texts_and_ids_are_answered_and_tools_are_called() -> None:
    def speak(prompt: str, rng: random.Random) -> str:
        return '<tool_call>{"name": "look", "arguments": {}}</tool_call>' if "tool\n18" not in prompt else "18."

    assert all(
        branch.outcome.value == 1.0 for group in ran("streams")[0] for branch in group.branches if branch.outcome
    )
    groups, _ = ran("uses_tools", speak=speak)
    for branch in (branch for group in groups for branch in group.branches):
        assert [trained for trained, _ in turns_of(branch)] == [True, False, True]
        assert turns_of(branch)[1][1] == "\n<|im_start|>tool\n18<|im_end|>\n<|im_start|>assistant\n"


def test_an_agent_of_a_library_trains_without_a_change() -> None:
    def speak(prompt: str, rng: random.Random) -> str:
        first = prompt.count("<|im_start|>assistant") == 1
        return f"Thought: compute.\n<code>\n{'print(6 * 7)' if first else 'final_answer(42)'}\n</code>"

    sample = Sample(sample_id="s", prompt=[{"role": "user", "content": "Multiply 6 and 7."}], gold="42")
    groups, _ = ran("of_a_library", speak=speak, samples=[sample], max_length=20_000)
    for branch in groups[0].branches:
        assert branch.outcome is not None
        assert (branch.outcome.value, branch.outcome.parts["agent/requests"]) == (1.0, 2)
    # The library writes its call of the interpreter into the model's turn, so the second request is another context.
    ends = [said(branch)[-1].partition("<code>")[2] for branch in groups[0].branches]
    assert sorted(ends) == sorted(2 * ["\nprint(6 * 7)\n</code>", "\nfinal_answer(42)\n</code>"])


def test_games_over_the_address_are_the_games_of_the_environment_bit_by_bit() -> None:
    over_address, asked = ran(
        "plays", speak=a_legal_move, samples=list(GAMES.train[:6]), group_size=3, reader=TOKENIZER, order="rounds"
    )
    generators = ScriptedGenerators(TOKENIZER, a_legal_move)
    episodes = Episodes(EnvironmentConfig(fn="tic_tac_toe"), generators, TOKENIZER)  # type: ignore[arg-type]
    played = submitted(episodes, GAMES.train[:6], 3, 400)
    episodes.shutdown()
    assert asked.rounds == generators.rounds

    def tokens(groups: list[Group]) -> Any:
        return [
            (list(g.prompt_ids), [(b.token_ids, b.loss_mask, b.logprobs, b.finish_reason) for b in g.branches])
            for g in groups
        ]

    assert tokens(over_address) == tokens(played)
    for one, other in zip(over_address, played, strict=True):
        assert [b.outcome.value for b in one.branches if b.outcome] == [
            b.outcome.value for b in other.branches if b.outcome
        ]
        assert last_board(TOKENIZER.decode(one.prompt_ids))


def evaluated(answers: Any, generators: ScriptedGenerators, samples: Sequence[Sample], reader: Any) -> Evaluation:
    """An evaluation's numbers and answers; each answer is also measured by its words."""
    rewarder = Rewarder([RewardConfig(fn="length", args={"limit": 1000})])
    given: dict[str, Any] = {"max_prompt_tokens": 100, "max_response_tokens": 400, "answers": answers}
    try:
        return Evaluator({"held_out": samples}, reader, generators, rewarder, **given).evaluate()  # type: ignore[arg-type]
    finally:
        answers.shutdown()


def test_held_out_games_over_the_address_are_those_of_the_environment() -> None:
    def measured(build: Callable[[Any], Any]) -> Evaluation:
        generators = ScriptedGenerators(TOKENIZER, a_legal_move)
        return evaluated(build(generators), generators, GAMES.heldout, TOKENIZER)

    config = AgentConfig(fn=f"{HERE}:plays", order="rounds")
    by_agent = measured(lambda generators: AgentEpisodes(config, generators, TOKENIZER, max_length=500))
    by_class = measured(lambda generators: Episodes(EnvironmentConfig(fn="tic_tac_toe"), generators, TOKENIZER))
    metrics = by_agent.metrics
    assert metrics["eval/held_out/agent"] == by_class.metrics["eval/held_out/environment"]
    assert metrics["eval/held_out/response_tokens"] == by_class.metrics["eval/held_out/response_tokens"]
    for one, other in zip(by_agent.groups["held_out"], by_class.groups["held_out"], strict=True):
        (mine,), (theirs,) = one.branches, other.branches
        assert (mine.token_ids, mine.loss_mask, mine.turns) == (theirs.token_ids, theirs.loss_mask, theirs.turns)


def test_a_held_out_sample_counts_once_however_many_contexts_its_episode_has() -> None:
    generators = ScriptedGenerators(TOKENIZER, count)
    config = AgentConfig(fn=f"{HERE}:asks_in_contexts")
    episodes = AgentEpisodes(config, generators, FORM, max_length=1000)  # type: ignore[arg-type]
    found = evaluated(episodes, generators, SAMPLES, FORM)
    # Scores 0, 1 and 2 in 1, 2 and 3 contexts: by contexts the mean would be 8 / 6.
    assert found.metrics["eval/held_out/agent"] == 1.0
    assert found.metrics["eval/held_out/agent/contexts"] == 2.0
    for group in found.groups["held_out"]:
        (whole,) = group.branches
        spoken = [text for trained, text in turns_of(whole) if trained]
        assert len(spoken) == int(group.sample.gold or 0) + 2
        assert whole.num_sampled == sum(len(TOKENIZER.encode(text, add_special_tokens=False)) for text in spoken)
        assert whole.text == spoken[-1].removesuffix("<|im_end|>")  # the first context's, which was asked last
        assert whole.text.startswith("2 ")
        assert sum(size for _, size in whole.turns) == len(whole.token_ids) == len(whole.logprobs or ())


# -- what goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "settings", "sentence"),
    [
        ("silent", {}, "ValueError: it never asked the model"),
        ("scoreless", {}, "ValueError: it ended without a score"),
        ("wild", {"max_requests": 5}, r"had 5 answers and asks for 1 more; it may have 5 \(agent.max_requests\)"),
        ("elsewhere", {}, "there is no model 'gpt-4o' here, only 'policy'; name it in agent.model"),
        ("foreign", {}, r"1000000 is no token id of this model, which has \d+: another tokenizer's\?"),
        ("hangs", {"timeout_s": 0.3}, r"it took longer than agent.timeout_s \(0.3 s\)"),
        ("hangs_in_a_thread", {"timeout_s": 0.3}, r"it took longer than agent.timeout_s \(0.3 s\)"),
        ("forces", {}, "tool_choice can be auto or none"),
    ],
)
def test_an_agent_that_goes_wrong_costs_its_own_episode(
    fn: str, settings: dict[str, Any], sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    groups, _ = ran(fn, error_reward=-1.0, max_error_fraction=1.0, samples=SAMPLES[:1], **settings)
    (group,) = groups
    assert all(branch.outcome.value == -1.0 for branch in group.branches if branch.outcome)
    assert all(branch.outcome.parts["agent/failed"] == 1 for branch in group.branches if branch.outcome)
    assert re.search(sentence, caplog.text)
    assert re.search(rf"agent {HERE}:{fn} failed: .* on sample s0 after \d requests", caplog.text)
    with pytest.raises(PlayError, match=r"1 of 2 episodes failed \(at most 10% may, agent.max_error_fraction\)"):
        ran(fn, samples=SAMPLES[:1], **settings)


def test_an_engine_that_dies_is_no_fault_of_the_agent() -> None:
    def speak(prompt: str, rng: random.Random) -> str:
        return "fine"

    class Dying(ScriptedGenerators):
        def _answer(self, requests: Any, futures: Any) -> None:
            for future in futures:
                future.set_exception(WorkerError("generator rank 0 died"))

    config = AgentConfig(fn=f"{HERE}:checks_itself", max_error_fraction=1.0)
    episodes = AgentEpisodes(config, Dying(TOKENIZER, speak), FORM, max_length=1000)  # type: ignore[arg-type]
    try:
        with pytest.raises(WorkerError, match="generator rank 0 died"):
            submitted(episodes, SAMPLES, 2, 400, FORM)  # type: ignore[arg-type]
    finally:
        episodes.shutdown()


PROGRAM = """
import json, os, urllib.request

def post(url, body):
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
    return json.load(urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)))

sample = json.loads(os.environ["TROUPE_SAMPLE"])
answer = post(os.environ["OPENAI_BASE_URL"] + "/chat/completions", {"model": "policy", "messages": sample["prompt"]})
text = answer["choices"][0]["message"]["content"]
post(os.environ["TROUPE_SCORE_URL"], {"reward": 1.0 if text.startswith("1") else 0.0, "gold": int(sample["gold"])})
"""


def test_a_process_asks_the_address_of_its_environment_and_scores_by_a_call(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(PROGRAM)
    groups, _ = ran(None, command=[sys.executable, str(tmp_path / "agent.py")], samples=SAMPLES[1:])
    for group in groups:
        for branch in group.branches:
            assert branch.outcome is not None
            assert branch.outcome.value == 1.0
            assert branch.outcome.parts["agent/gold"] == float(group.sample.gold or 0)


def test_a_process_that_fails_shows_the_end_of_its_output(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "agent.py").write_text("raise SystemExit('no map of the area')")
    ran(None, command=[sys.executable, str(tmp_path / "agent.py")], samples=SAMPLES[:1], max_error_fraction=1.0)
    assert "RuntimeError: exit status 1: no map of the area" in caplog.text


LATE = PROGRAM.replace(
    'post(os.environ["TROUPE_SCORE_URL"]',
    """
for bad in (None, {"won": 1}, {"reward": "1"}, {"reward": float("nan")}):
    try:
        post(os.environ["TROUPE_SCORE_URL"], bad)
    except urllib.error.HTTPError as error:
        print(json.load(error)["error"]["message"])
post(os.environ["TROUPE_SCORE_URL"], {"reward": 0.25})
post(os.environ["TROUPE_SCORE_URL"]""",
).replace("urllib.request\n", "urllib.error, urllib.request\n", 1)


def test_of_several_scores_the_last_one_counts_and_what_is_none_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "agent.py").write_text(LATE.replace("1.0 if", "0.75 if"))
    command = [sys.executable, str(tmp_path / "agent.py")]
    groups, _ = ran(None, command=command, samples=SAMPLES[1:2], group_size=1)
    assert [branch.outcome.value for branch in branches(groups) if branch.outcome] == [0.75]
    (tmp_path / "agent.py").write_text(LATE + "raise SystemExit(3)\n")  # which shows what it printed
    ran(None, command=command, samples=SAMPLES[1:2], group_size=1, max_error_fraction=1.0)
    for sentence in (
        "reward of a score must be a finite number, got None",
        "a score that is a mapping needs 'reward', got won",
        "reward of a score must be a finite number, got '1'",
        "reward of a score must be a finite number, got nan",
    ):
        assert sentence in caplog.text


class Leaves(TicTacToe):
    """A game whose library ends the program, as one that reads a command line does."""

    def step(self, answer: str) -> Any:
        sys.exit("usage: game")


def test_a_game_that_ends_the_program_costs_itself_and_the_next_is_played(caplog: pytest.LogCaptureFixture) -> None:
    generators = ScriptedGenerators(TOKENIZER, a_legal_move)
    config = EnvironmentConfig(fn=f"{HERE}:Leaves", max_error_fraction=1.0, error_reward=-1.0)
    episodes = Episodes(config, generators, TOKENIZER)  # type: ignore[arg-type]
    try:
        for _ in range(2):
            groups = submitted(episodes, GAMES.train[:2], 1, 400)
            assert [branch.outcome.value for branch in branches(groups) if branch.outcome] == [-1.0, -1.0]
    finally:
        episodes.shutdown()
    assert "RuntimeError: it raised SystemExit('usage: game')" in caplog.text


def test_an_agent_is_named_one_way_and_must_be_a_function() -> None:
    with pytest.raises(ValueError, match="by fn or by command"):
        AgentConfig()
    with pytest.raises(ConfigError, match="HERE is a str, not a function"):
        ran("HERE")

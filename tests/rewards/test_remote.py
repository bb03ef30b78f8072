import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.rewards.chat_server import ChatServer
from tests.rewards.conftest import branch, group_of
from troupe.config.rollout import RewardConfig
from troupe.errors import ConfigError, RewardError
from troupe.records import Group, Message, Sample
from troupe.rewards.build import Rewards, build_rewards
from troupe.rewards.remote import read_number, read_verdict

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-very-secret-0123456789"

Serve = Callable[..., ChatServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts servers; each wants the key that the environment holds."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ExitStack() as stack:
        yield lambda respond: stack.enter_context(ChatServer(respond, key=KEY).running())


def rewards_of(fn: str, server: ChatServer, **args: Any) -> Rewards:
    quick = {"timeout_s": 5, "patience_s": 5, "backoff_s": 0.01, "cache": None}
    return build_rewards(
        [RewardConfig(fn=fn, name="judge", args={"base_url": server.url, "model": "m", **quick, **args})]
    )


def values(rewards: Rewards, group: Group) -> list[float | None]:
    return [score.value for score in asyncio.run(rewards.score(group))]


# -- one number ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("reward:-25", -25.0),
        ("reward:3.5", 3.5),
        ("  Reward : +.5 \n", 0.5),
        ("reward:\n-1.25e-3\n", -0.00125),
        ("reward:−7", -7.0),  # a typographic minus
        ("**reward: 2**.", 2.0),
        ('{"reward": -4.0}', -4.0),
        ("It is polite.\nreward: 1\nOn second thoughts:\nreward: 2", 2.0),
        ("reward: 7/10", None),
        ("reward: 3,5", None),
        ("reward: 7 out of 10", None),
        ("reward: nan", None),
        ("reward: 1e999", None),
        ("reward:", None),
        ("foreward: 3", None),
        ("I cannot judge that, 3 times over.", None),
        ("", None),
        ("reward" + " " * 100_000 + "3", None),
    ],
)
def test_a_number_is_read_and_nothing_else_is_taken_for_one(reply: str, number: float | None) -> None:
    assert read_number(reply) == number


def test_the_judge_sees_the_conversation_with_the_answer_as_its_last_turn(serve: Serve) -> None:
    server = serve(lambda body, number: f"reward:{-len(body['messages'][-1]['content'])}")
    turns = [
        Message(role="system", content="Be brief."),
        Message(role="user", content="3+5?"),
        Message(role="assistant", content="8"),
        Message(role="user", content="Sure?"),
    ]
    group = group_of(Sample(sample_id="s", prompt=turns), "yes", "no")
    assert values(rewards_of("remote_reward", server), group) == [-3.0, -2.0]
    asked = sorted(server.bodies, key=lambda body: len(body["messages"][-1]["content"]))
    assert [body["messages"] for body in asked] == [
        [*turns, {"role": "assistant", "content": text}] for text in ("no", "yes")
    ]
    assert all(body.keys() == {"model", "messages"} and body["model"] == "m" for body in server.bodies)


def test_a_plain_prompt_is_the_users_turn_and_options_travel_along(serve: Serve, sample: Sample) -> None:
    server = serve(lambda body, number: "reward:1")
    values(rewards_of("remote_reward", server, options={"max_tokens": 9}), group_of(sample, "8"))
    assert server.bodies == [
        {
            "model": "m",
            "max_tokens": 9,
            "messages": [{"role": "user", "content": sample.prompt}, {"role": "assistant", "content": "8"}],
        }
    ]


def test_an_empty_answer_is_not_sent_and_is_worth_what_the_recipe_says(serve: Serve, sample: Sample) -> None:
    server = serve(lambda body, number: "reward:1")
    assert values(rewards_of("remote_reward", server), group_of(sample, " \n", "8")) == [None, 1.0]
    assert values(rewards_of("remote_reward", server, empty=-30), group_of(sample, "")) == [-30.0]
    assert len(server.bodies) == 1


def test_another_pattern_reads_another_judge(serve: Serve, sample: Sample) -> None:
    server = serve(lambda body, number: "Rating: 4/5")
    rewards = rewards_of("remote_reward", server, pattern=r"Rating: (\d)/5")
    assert values(rewards, group_of(sample, "8")) == [4.0]


def test_half_a_character_in_an_answer_does_not_stop_the_run(serve: Serve, sample: Sample) -> None:
    server = serve(lambda body, number: "reward:1")
    assert values(rewards_of("remote_reward", server), group_of(sample, "8 \ud83d")) == [1.0]


def test_the_parts_say_what_the_judgement_cost_and_the_counters_sum_it_up(serve: Serve, sample: Sample) -> None:
    server = serve(lambda body, number: "reward:2")
    rewards = rewards_of("remote_reward", server)
    first, second = asyncio.run(rewards.score(group_of(sample, "8", "8")))  # the same answer twice is asked once
    assert {tuple(sorted(score.parts.items())) for score in (first, second)} == {
        (("judge", 2.0), ("judge/cached", 0.0), ("judge/retries", 0.0), ("judge/tokens", 7.0)),
        (("judge", 2.0), ("judge/cached", 1.0), ("judge/retries", 0.0), ("judge/tokens", 0.0)),
    }
    assert rewards.counters == {"judge/requests": 1, "judge/tokens": 7, "judge/cached": 1}


# -- two answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("verdict: A", 1.0),
        ("Verdict: **B**.", 0.0),
        ("verdict: tie", 0.5),
        ("verdict: a tie", 0.5),
        ("verdict: Answer B", 0.0),
        ("A is long.\nB is right.\n\nFinal verdict: [[B]]\n", 0.0),
        ("I prefer the first: [[A]], clearly", 1.0),
        ("[[C]]", 0.5),
        ("A", 1.0),
        ("(b)", 0.0),
        ("verdict: A\nNo, wait.\nverdict: B", 0.0),
        ("verdict: A or B", None),
        ("verdict: neither", None),
        ("A good question.", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_and_nothing_else_is_taken_for_one(reply: str, value: float | None) -> None:
    assert read_verdict(reply) == value


def places(body: dict[str, Any]) -> tuple[str, str]:
    """The two answers of a request made with `TEMPLATE`."""
    text = body["messages"][0]["content"]
    first, second = (text.split(f"[Answer {name}]\n")[1].split(f"\n[End of answer {name}]")[0] for name in "AB")
    return first, second


TEMPLATE = "[Answer A]\n{first}\n[End of answer A] {{}} [Answer B]\n{second}\n[End of answer B] of {prompt}"


def longer_wins(body: dict[str, Any], number: int) -> str:
    first, second = map(len, places(body))
    return f"verdict: {'tie' if first == second else 'A' if first > second else 'B'}"


def test_a_win_is_one_a_tie_one_half_a_loss_nothing(serve: Serve) -> None:
    rewards = rewards_of("remote_comparison", serve(longer_wins))
    group = group_of(Sample(sample_id="s", prompt="?", gold="four"), "five!", "six ", "six!", "one")
    # Lengths 5, 4, 4, 3 against 4; both orders agree, so their mean is the verdict itself.
    assert values(rewards, group) == [1.0, 0.5, 0.5, 0.0]


@pytest.mark.parametrize("side", ["A", "B"])
def test_asking_in_both_orders_cancels_a_preference_for_a_place(serve: Serve, sample: Sample, side: str) -> None:
    server = serve(lambda body, number: f"verdict: {side}")
    assert values(rewards_of("remote_comparison", server), group_of(sample, "nine")) == [0.5]
    once = rewards_of("remote_comparison", server, both_orders=False)
    assert values(once, group_of(sample, "nine")) == [1.0 if side == "A" else 0.0]


def test_each_order_is_asked_once_and_a_tie_in_one_order_counts_a_quarter(serve: Serve, sample: Sample) -> None:
    server = serve(lambda body, number: "verdict: A" if places(body)[0] == "nine" else "verdict: tie")
    (score,) = asyncio.run(rewards_of("remote_comparison", server).score(group_of(sample, "nine")))
    assert score.value == (1.0 + 0.5) / 2
    assert score.parts["judge/tokens"] == 14
    assert sorted(map(places, server.bodies)) == [("8", "nine"), ("nine", "8")]
    assert all(body["temperature"] == 0 for body in server.bodies)


def test_half_a_comparison_is_missing(serve: Serve, sample: Sample) -> None:
    server = serve(lambda body, number: "verdict: A" if places(body)[0] == "nine" else "hm")
    rewards = rewards_of("remote_comparison", server)
    assert values(rewards, group_of(sample, "nine")) == [None]
    assert rewards.counters["judge/missing"] == 1


def test_empty_answers_lose_and_copies_tie_without_being_asked(serve: Serve, sample: Sample) -> None:
    server = serve(longer_wins)
    assert values(rewards_of("remote_comparison", server), group_of(sample, "", " 8\n")) == [0.0, 0.5]
    assert not server.bodies


def test_the_reference_may_be_a_field_and_the_template_ones_own(serve: Serve) -> None:
    server = serve(longer_wins)
    rewards = rewards_of("remote_comparison", server, template=TEMPLATE, reference_field="demonstration")
    sample = Sample(sample_id="s", prompt="3+5?", fields={"demonstration": "{eight}"})
    assert values(rewards, group_of(sample, "8")) == [0.0]
    assert server.bodies[0]["messages"][0]["content"].endswith(
        "[End of answer A] {} [Answer B]\n{eight}\n[End of answer B] of 3+5?"
    ) or (server.bodies[1]["messages"][0]["content"].endswith("{} [Answer B]\n{eight}\n[End of answer B] of 3+5?"))
    with pytest.raises(RewardError, match="the sample has no text in its field 'demonstration' to compare with"):
        asyncio.run(rewards.score(group_of(Sample(sample_id="s", prompt="?", gold="8"), "8")))


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "args", "sentence"),
    [
        ("remote_reward", {"model": None}, "missing a required argument: 'model'"),
        ("remote_reward", {"modle": "m"}, "remote_reward: unknown argument 'modle'"),
        ("remote_reward", {"max_concurrency": 0}, r"argument max_concurrency: .* equal to 1 \(got 0\)"),
        ("remote_reward", {"base_url": "judge:80/v1"}, r"base_url: it must be http\(s\)://host/path"),
        ("remote_reward", {"base_url": "http://h/v1?x=1"}, "without a query"),
        ("remote_reward", {"options": {"model": "x"}}, "options: it may not set model"),
        ("remote_reward", {"pattern": r"reward:\d+"}, r"has no group \(...\) around what is to be read"),
        ("remote_reward", {"api_key_env": "NO_SUCH_KEY"}, "environment variable NO_SUCH_KEY .* is not set"),
        ("remote_reward", {"cache": "/dev/null/x.sqlite"}, "the cache /dev/null/x.sqlite cannot be opened"),
        ("remote_comparison", {"template": "{first} or not"}, "template: it must hold both {first} and {second}"),
        ("remote_comparison", {"template": "{first} {second} {gold}"}, "template: it may hold {prompt}.*'gold'"),
    ],
)
def test_a_mistake_in_a_judge_is_found_before_anything_starts(
    serve: Serve, fn: str, args: dict[str, Any], sentence: str
) -> None:
    given = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "cache": None, **args}
    given = {name: value for name, value in given.items() if name == "cache" or value is not None}
    with pytest.raises(ConfigError, match=sentence):
        build_rewards([RewardConfig(fn=fn, args=given)])


@pytest.mark.parametrize(
    "args",
    [
        {"api_key": KEY},
        {"api_key_env": KEY},
        {"api_key_env": "hf_secret0123"},
        {"base_url": f"https://user:{KEY}@host/v1"},
        {"base_url": f"https://host/v1?key={KEY}"},
    ],
)
def test_a_key_in_the_recipe_is_refused_and_not_repeated(serve: Serve, args: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        build_rewards([RewardConfig(fn="remote_reward", args={"base_url": "http://h/v1", "model": "m", **args})])
    assert "secret" not in str(refused.value)


def test_a_file_of_answers_is_scored_and_the_second_time_for_nothing(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda body, number: f"reward:{-len(body['messages'][-1]['content']) / 2}")
    rows = [{"prompt": "3+5?", "answer": "8"}, {"prompt": [{"role": "user", "content": "?"}], "answer": "nine"}]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = f"{{base_url: '{server.url}', model: m, cache: '{tmp_path}/c.sqlite'}}"
    command = [sys.executable, "jobs/score.py", f"file={tmp_path}/answers.jsonl"]
    command.append(f"rewards=[{{fn: remote_reward, name: judge, args: {args}}}]")
    for _ in range(2):
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=dict(os.environ))
        assert ran.returncode == 0, ran.stderr
        scored = [json.loads(line) for line in (tmp_path / "answers.scored.jsonl").read_text().splitlines()]
        assert [row["score"] for row in scored] == [-0.5, -2.0]
        assert len(server.bodies) == 2
        assert KEY not in ran.stdout + ran.stderr
    assert [row["parts"]["judge/cached"] for row in scored] == [1.0, 1.0]
    assert KEY.encode() not in (tmp_path / "c.sqlite").read_bytes()


def test_a_judge_that_refuses_ends_the_job_with_one_sentence(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda body, number: "reward:1")
    (tmp_path / "answers.jsonl").write_text('{"prompt": "?", "answer": "8"}\n{"prompt": "!", "answer": "9"}\n')
    args = f"{{base_url: '{server.url}', model: m, cache: null}}"
    command = [
        sys.executable,
        "jobs/score.py",
        f"file={tmp_path}/answers.jsonl",
        f"rewards=[{{fn: remote_reward, args: {args}}}]",
    ]
    environment = {**os.environ, "OPENAI_API_KEY": "another-secret"}
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment)
    assert ran.returncode == 2
    assert ran.stderr.startswith(
        f"error: reward remote_reward: the judge at {server.url}/chat/completions answered 401"
    )
    assert "environment variable OPENAI_API_KEY" in ran.stderr
    assert "another-secret" not in ran.stdout + ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_a_branch_of_many_is_scored_in_place(serve: Serve, sample: Sample) -> None:
    server = serve(lambda body, number: f"reward:{body['messages'][-1]['content']}")
    group = Group(sample=sample, prompt_ids=(), branches=[branch(str(number)) for number in range(40)])
    assert values(rewards_of("remote_reward", server, max_concurrency=8), group) == [float(n) for n in range(40)]


def test_the_recipes_of_the_documentation_can_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "rewards.md").read_text()
    (tmp_path / "my_rewards.py").write_text(
        "def brevity(sample, branch, *, target: int = 12) -> float:\n    return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    monkeypatch.chdir(tmp_path)
    for judge in ("NVIDIA", "OPENROUTER"):
        monkeypatch.setenv(f"{judge}_API_KEY", KEY)
    recipes = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    labels = [
        build_rewards([RewardConfig(**reward) for reward in yaml.safe_load(recipe)["rewards"]]).labels
        for recipe in recipes
        if yaml.safe_load(recipe)["rewards"]
    ]
    assert labels == [["math_answer", "length", "brief"], ["judge_qa"], ["remote_reward"], ["remote_comparison"]]

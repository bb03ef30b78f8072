"""The benchmark job against two real endpoints on loopback, and a run directory whose own answers stand for its model.

No engine is started: every step of the run has its answers in answers.jsonl.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.actors.small import write_model
from tests.evaluation.test_evaluate import write_reward_model
from tests.rewards.chat_server import Answer, ChatServer
from troupe.config.evaluation import BenchmarkConfig
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.config.program import run_program
from troupe.errors import ConfigError, DataError
from troupe.evaluation.plan import prepare
from troupe.files import read_json, read_lines
from troupe.jobs.benchmark import benchmark
from troupe.report.report import build_report

SAMPLES = 8
RIGHT_AT = {0: 2, 10: 4, 20: 7}
"""Step -> how many of the answers are right."""


def question(number: int) -> str:
    return f"What is {number} + {number}?"


def solve(body: dict[str, Any]) -> int:
    """What an honest endpoint computes."""
    return 2 * int(body["messages"][-1]["content"].split()[2])


def reply(text: str, prompt_tokens: int = 10, completion_tokens: int = 5) -> Answer:
    message = {"role": "assistant", "content": text}
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    return Answer(raw=json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}))


@dataclass
class RunContext:
    directory: Path
    steady: ChatServer
    moody: ChatServer

    def recipe(self, **given: Any) -> BenchmarkConfig:
        endpoint = {"model": "m", "api_key_env": None, "backoff_s": 0.01, "patience_s": 20}
        settings: dict[str, Any] = {
            "trained": str(self.directory / "run"),
            "data": {
                "type": "jsonl",
                "path": str(self.directory / "train.jsonl"),
                "heldout_path": str(self.directory / "heldout.jsonl"),
                "gold_field": "gold",
                "id_field": "id",
            },
            "endpoints": {
                "steady": {**endpoint, "base_url": self.steady.url, "prompt_price": 1.0, "completion_price": 4.0},
                "moody": {**endpoint, "base_url": self.moody.url},
            },
            "output": str(self.directory / "out"),
        }
        return BenchmarkConfig(**(settings | given))

    def asked(self) -> int:
        return len(self.steady.bodies) + len(self.moody.bodies)


def write_run(directory: Path, *, keep: int = SAMPLES) -> None:
    directory.mkdir(parents=True)
    recipe = GRPOConfig().model_dump(mode="json")
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(recipe)))
    lines = [
        {
            "step": step,
            "set": "rows",
            "sample_id": f"s/{number}",
            "prompt": question(number),
            "gold": str(2 * number),
            "text": f"#### {2 * number if number <= right else 0}",
            "metrics": {},
        }
        for step, right in RIGHT_AT.items()
        for number in range(1, keep + 1)
    ]
    (directory / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[RunContext]:
    """`steady` answers everything and gets 6 of 8 right; `moody` refuses every second call and gets all right."""
    rows = [
        {"id": f"s/{n}", "prompt": question(n), "gold": str(2 * n), "topic": "small" if n < 4 else "large"}
        for n in range(1, SAMPLES + 1)
    ]
    (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "train.jsonl").write_text('{"id": "t/1", "prompt": "What is 90 + 90?", "gold": "180"}\n')
    write_run(tmp_path / "run")

    def steady(body: dict[str, Any], number: int) -> Answer:
        return reply(f"It is {solve(body)}.\n#### {solve(body) if solve(body) <= 12 else 0}")

    def moody(body: dict[str, Any], number: int) -> Answer:
        return Answer(status=500, raw="later") if number % 2 == 0 else reply(f"#### {solve(body)}")

    with ExitStack() as stack:
        servers = [stack.enter_context(ChatServer(respond).running()) for respond in (steady, moody)]
        yield RunContext(tmp_path, *servers)


def test_everybody_answers_the_same_prompts_failures_are_counted_and_a_second_call_asks_nothing(
    scene: RunContext,
) -> None:
    benchmark(scene.recipe())
    out = scene.directory / "out"
    measured = read_json(out / "metrics.json")["models"]
    assert {name: one["accuracy"]["mean"] for name, one in measured.items()} == {
        "run@0": 2 / 8,
        "run@10": 4 / 8,
        "run@20": 7 / 8,
        "steady": 6 / 8,
        "moody": 1.0,
    }
    taken = {one["name"]: one for one in read_json(out / "benchmark.json")["contestants"]}
    assert (taken["steady"]["calls"], taken["steady"]["failed_calls"], taken["steady"]["missing"]) == (8, 0, 0)
    # Every second call of 500 and every other answered: 8 answers are 8 failures and 8 successes.
    assert (taken["moody"]["calls"], taken["moody"]["failed_calls"], taken["moody"]["missing"]) == (16, 8, 0)
    # 8 answers of 10 prompt tokens at 1 and 5 tokens at 4 per million
    assert taken["steady"]["cost"] == pytest.approx(8 * (10 * 1 + 5 * 4) / 1e6)
    assert taken["run@20"]["source"] == "the run's own answers"

    asked, first = scene.asked(), read_json(out / "metrics.json")
    benchmark(scene.recipe())
    assert scene.asked() == asked
    assert read_json(out / "metrics.json") == first
    assert read_json(out / "status.json")["state"] == "finished"


def test_what_is_written_can_be_read_drawn_and_asked_again(scene: RunContext) -> None:
    benchmark(scene.recipe())
    out = scene.directory / "out"
    chart = read_json(out / "charts" / "charts.json")[0]
    assert [(point["step"], point["mean"]) for point in chart["trained"]["points"]] == [
        (0, 0.25),
        (10, 0.5),
        (20, 0.875),
    ]
    assert {name: one["mean"] for name, one in chart["others"].items()} == {"steady": 0.75, "moody": 1.0}
    assert chart["percent"]
    assert {path.name for path in (out / "charts").glob("*.svg")} == {
        "accuracy-over-steps.svg",
        "accuracy-first-and-last.svg",
    }
    page = (out / "report.html").read_text()
    assert "RL +62 %" in page
    assert page.count("<svg") == 2
    assert build_report(out) == out / "report.html"  # jobs/report.py makes it again
    assert (out / "report.html").read_text() == page
    assert load_config(BenchmarkConfig, [str(out / "config.yaml")]) == scene.recipe()
    assert len(read_lines(out / "answers" / "moody.jsonl")) == SAMPLES
    assert "| moody | 1.000 (1.000 .. 1.000) |" in (out / "results.md").read_text()
    diversity = read_json(out / "benchmark.json")["diversity"]
    assert diversity["steady"]["words"]["mean"] == 5  # It is n. #### n


def test_another_prompt_is_asked_and_what_is_known_is_not(scene: RunContext) -> None:
    benchmark(scene.recipe(num_samples=5, stored_answers=False, trained=None))
    asked = scene.asked()
    assert asked == 5 + 10
    benchmark(scene.recipe(trained=None))
    assert len(scene.steady.bodies) == 8
    benchmark(scene.recipe(trained=None, max_response_tokens=41))  # another question
    assert len(scene.steady.bodies) == 16
    benchmark(scene.recipe(trained=None))  # the first answers were kept
    assert len(scene.steady.bodies) == 16


def test_repeats_are_asked_each_and_count_as_their_mean_over_samples(scene: RunContext) -> None:
    scene.steady.respond = lambda body, number: reply(f"#### {solve(body) if number < 12 else 0}")
    benchmark(scene.recipe(trained=None, repeats=2, temperature=1.0, endpoints={"steady": _endpoint(scene.steady)}))
    assert len(scene.steady.bodies) == 16
    assert all(body["temperature"] == 1.0 for body in scene.steady.bodies)
    found = read_json(scene.directory / "out" / "metrics.json")["models"]["steady"]["accuracy"]
    assert found["mean"] == pytest.approx(12 / 16)
    assert found["low"] >= 0.5  # no sample has less than one right answer of two


def _endpoint(server: ChatServer, **given: Any) -> dict[str, Any]:
    return {"base_url": server.url, "model": "m", "api_key_env": None, "backoff_s": 0.01, **given}


def test_a_model_that_mostly_fails_is_not_measured_its_row_says_so_and_the_others_are(scene: RunContext) -> None:
    def down(body: dict[str, Any], number: int) -> Answer:
        return Answer(status=503, raw="no capacity")

    scene.moody.respond = down
    endpoints = {"steady": _endpoint(scene.steady), "moody": _endpoint(scene.moody, patience_s=0.05)}
    benchmark(scene.recipe(trained=None, endpoints=endpoints))
    out = scene.directory / "out"
    assert set(read_json(out / "metrics.json")["models"]) == {"steady"}
    moody = next(one for one in read_json(out / "benchmark.json")["contestants"] if one["name"] == "moody")
    assert (moody["missing"], moody["remark"]) == (8, "8 of 8 answers are missing: 503")
    assert "| moody | missing (8 of 8) |" in (out / "results.md").read_text()
    assert "moody is not measured." in (out / "report.html").read_text()

    scene.moody.respond = lambda body, number: reply(f"#### {solve(body)}")
    benchmark(scene.recipe(trained=None, endpoints=endpoints))  # what failed is asked again, and only that
    assert read_json(out / "metrics.json")["models"]["moody"]["accuracy"]["mean"] == 1.0
    assert len(scene.steady.bodies) == SAMPLES


def test_a_key_that_is_refused_stops_its_model_after_a_few_questions_and_nobody_else(scene: RunContext) -> None:
    scene.moody.respond = lambda body, number: Answer(status=401, raw="wrong key")
    endpoints = {"steady": _endpoint(scene.steady), "moody": _endpoint(scene.moody, max_concurrency=1)}
    benchmark(scene.recipe(trained=None, endpoints=endpoints))
    out = scene.directory / "out"
    assert len(scene.moody.bodies) < SAMPLES
    moody = next(one for one in read_json(out / "benchmark.json")["contestants"] if one["name"] == "moody")
    assert "401 Unauthorized: wrong key" in moody["remark"]
    assert set(read_json(out / "metrics.json")["models"]) == {"steady"}


def test_every_pair_is_compared_in_every_dimension_and_ties_are_counted(scene: RunContext) -> None:
    judge = {"fn": "tests.light_rewards:longer"}
    settings = {"judge": judge, "dimensions": ["plot", "overall"], "genre_field": "topic"}
    benchmark(scene.recipe(preferences=settings))
    out = scene.directory / "out"
    found = read_json(out / "benchmark.json")["preferences"]
    assert set(found) == {"plot", "overall"}
    pairs = found["overall"]["pairs"]
    assert "run@0 over steady" not in pairs  # the last step stands for the trained model
    assert pairs["steady over moody"]["win_rate"]["mean"] == 1.0
    assert pairs["steady over moody"]["genres"]["small"]["samples"] == 3
    # run@20 and moody say the same, but for the one that run@20 has wrong: "#### 0" is shorter than "#### 16".
    assert pairs["moody over run@20"]["win_rate"]["mean"] == 1 / 8
    assert pairs["moody over run@20"]["tie_rate"]["mean"] == 7 / 8
    strengths = {name: one["mean"] for name, one in found["overall"]["strengths"].items()}
    assert strengths["steady"] > strengths["moody"] > strengths["run@20"]
    assert found["overall"]["separated"]
    assert len(read_lines(out / "preferences.jsonl")) == 3 * SAMPLES
    assert "## Preference, s_A / (s_A + s_B)" in (out / "results.md").read_text()


def test_a_remote_judge_sees_both_orders_and_its_word_is_paid_for_once(scene: RunContext) -> None:
    def verdict(body: dict[str, Any], number: int) -> Answer:
        return reply("verdict: A")  # always the first place

    endpoints = {name: _endpoint(server) for name, server in (("steady", scene.steady), ("moody", scene.moody))}
    with ChatServer(verdict).running() as server:
        judge = {
            "fn": "remote_comparison",
            "args": {**_endpoint(server), "cache": str(scene.directory / "judge.sqlite")},
        }
        recipe = scene.recipe(trained=None, endpoints=endpoints, preferences={"judge": judge})
        benchmark(recipe)
        assert len(server.bodies) == 2 * SAMPLES
        assert "one respect alone, overall quality" in server.bodies[0]["messages"][0]["content"]
        benchmark(recipe)
        assert len(server.bodies) == 2 * SAMPLES
    found = read_json(scene.directory / "out" / "benchmark.json")["preferences"]["overall"]
    assert found["pairs"]["steady over moody"]["preference"]["mean"] == pytest.approx(0.5)
    assert found["pairs"]["steady over moody"]["tie_rate"]["mean"] == 1.0


def test_a_reward_model_scores_every_answer_that_is_there(scene: RunContext, tmp_path: Path) -> None:
    write_model(tmp_path / "model", tied=True)
    write_reward_model(tmp_path / "model", tmp_path / "reward")
    scene.moody.respond = lambda body, number: reply(f"#### {solve(body)}") if solve(body) > 2 else Answer(status=400)
    benchmark(
        scene.recipe(
            trained=None,
            endpoints={name: _endpoint(server) for name, server in (("steady", scene.steady), ("moody", scene.moody))},
            max_missing=0.2,
            reward_model={"path": str(tmp_path / "reward"), "precision": "fp32"},
            placement={"backend": "inline"},
            charts=["reward"],
        )
    )
    out = scene.directory / "out"
    rows = {name: read_lines(out / "answers" / f"{name}.jsonl") for name in ("steady", "moody")}
    assert (len(rows["steady"]), len(rows["moody"])) == (8, 7)
    scores = {name: [row["score_prediction"] for row in of_name] for name, of_name in rows.items()}
    assert all(isinstance(score, float) for of_name in scores.values() for score in of_name)
    measured = read_json(out / "metrics.json")["models"]
    assert measured["moody"]["reward"]["mean"] == pytest.approx(sum(scores["moody"]) / 7)
    assert read_json(out / "charts" / "charts.json")[0]["metric"] == "reward"


# -- what is refused ---------------------------------------------------------------------------------------------


def test_steps_are_named_by_number_or_place_and_each_is_there_once(scene: RunContext) -> None:
    def names(**given: Any) -> list[str]:
        return [one.name for one in prepare(scene.recipe(endpoints={}, **given)).candidates]

    assert names() == ["run@0", "run@10", "run@20"]
    assert names(steps=["last", "first", 20]) == ["run@0", "run@20"]
    assert names(steps=10, trained_as="ours") == ["ours@10"]
    assert names(steps=10, trained=str(scene.directory / "run" / "checkpoints" / "best")) == ["run@10"]


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a step that is not there": (
        {"steps": [15]},
        DataError,
        "has neither a checkpoint of step 15 nor its answers to all 8 samples; there are 0, 10, 20",
    ),
    "no best": ({"steps": "best"}, DataError, "keeps no best checkpoint; name first, last, all"),
    "other sampling than the run's": (
        {"max_response_tokens": 99},
        DataError,
        "has no complete checkpoint and no answers to all 8 samples",
    ),
    "no run there": ({"trained": "nowhere"}, DataError, "nowhere is not a run directory"),
    "a start that is not kept": ({"base": "start"}, ConfigError, "starts from a model of its own making"),
    "a model that was never compared": (
        {"preferences": {"judge": {"fn": "tests.light_rewards:longer"}, "between": ["run@5", "steady"]}},
        ConfigError,
        "preferences.between names 'run@5'; there are run@0, run@10, run@20, steady, moody",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work_is_found_before_anybody_is_asked(case: str, scene: RunContext) -> None:
    given, error, sentence = BAD[case]
    with pytest.raises(error, match=sentence):
        benchmark(scene.recipe(**given))
    assert scene.asked() == 0
    assert not (scene.directory / "out").exists()


def test_a_key_that_is_not_there_is_named_and_the_status_is_2(
    scene: RunContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    endpoint = f"endpoints.gpt={{base_url: '{scene.steady.url}', model: m, api_key_env: NO_SUCH_KEY}}"
    monkeypatch.setattr(sys, "argv", ["jobs/benchmark.py", endpoint, f"output={scene.directory / 'out'}"])
    with pytest.raises(SystemExit) as ended:
        run_program(benchmark, BenchmarkConfig, "jobs/benchmark.py")
    assert ended.value.code == 2
    assert "endpoints.gpt: the environment variable NO_SUCH_KEY" in capsys.readouterr().err
    assert not (scene.directory / "out").exists()


def test_answers_of_some_samples_do_not_stand_for_all(tmp_path: Path, scene: RunContext) -> None:
    write_run(tmp_path / "partial", keep=5)
    with pytest.raises(DataError, match="no answers to all 8 samples"):
        prepare(scene.recipe(trained=str(tmp_path / "partial")))
    assert len(prepare(scene.recipe(trained=str(tmp_path / "partial"), num_samples=5)).stored) == 3
    kept = prepare(scene.recipe(trained=str(tmp_path / "partial"), kept_samples_only=True))
    assert [sample.sample_id for sample in kept.samples] == ["s/1", "s/2", "s/3", "s/4", "s/5"]

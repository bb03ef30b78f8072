"""The evaluation job: refusals before anything starts, answers that survive a crash, and numbers that can be
recomputed.

Only the fixture `examined` starts an engine; every other call goes on from the answers that it left.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.actors.small import write_model
from troupe.chat import encode_answer, encode_prompt
from troupe.config.evaluation import EvaluateConfig
from troupe.config.program import run_program
from troupe.data import load_data
from troupe.data.reference_answers import read_answers
from troupe.errors import CheckpointError, DataError, RewardError
from troupe.evaluation.evaluation_tables import as_csv, as_markdown, result_tables
from troupe.evaluation.generation import evaluation_seats, with_tokens
from troupe.evaluation.plan import prepare
from troupe.evaluation.scores import AnswerRow, estimate_metrics
from troupe.evaluation.stored_answers import AnswerStore
from troupe.files import read_lines
from troupe.jobs.evaluate import evaluate
from troupe.records import Branch, Sample
from troupe.runs.model_check import check_model
from troupe.runs.model_paths import locate

SAMPLES = 6


BAD_RECIPES = {
    "no model": (["rouge=true"], "give either model (one) or models (several by name)"),
    "a judge that nobody knows": (["model={tmp}/model", "against=reference", "judge=rogue"], "unknown reward 'rogue'"),
    "contexts of other samples": (
        ["models={a: '{tmp}/model'}", "contexts={a: '{tmp}/answers.jsonl'}"],
        "answers.jsonl has no answer to 8 of the 8 samples, word_problems/",
    ),
    "no run there": (["model=runs/none"], "there is no model at 'runs/none'; give a run directory"),
    "a run without a checkpoint": (["model={tmp}/run"], "has no complete checkpoint yet"),
    "no gold": (
        ["model={tmp}/model", "rouge=true", *["data={type: jsonl, path: '{tmp}/rows.jsonl', num_heldout: 1}"]],
        "have none",
    ),
    "prompts that do not fit": (
        ["model={tmp}/model", "max_prompt_tokens=3"],
        "held-out prompts are longer than max_prompt_tokens (3); raise it",
    ),
    "a reward model without a head": (
        ["model={tmp}/model", "reward_model.path={tmp}/model"],
        "is a Qwen2ForCausalLM and has no trained scalar head; train one with jobs/train_reward_model.py",
    ),
    "a reward model with another tokenizer": (
        ["model={tmp}/model", "reward_model.path={tmp}/other"],
        "has another tokenizer",
    ),
    "answers to other samples": (
        ["model={tmp}/model", "against={tmp}/answers.jsonl"],
        "answers.jsonl has no answer to 8 of the 8 samples, word_problems/",
    ),
}


def test_a_model_with_contexts_reads_them_and_the_others_read_the_same_prompt_without(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = {"type": "word_problems", "num_train": 20, "num_heldout": 3}
    held_out = load_data(EvaluateConfig(model="runs/x", data=data).data).heldout
    lines = [
        {"sample_id": sample.sample_id, "prediction": f"So: {number}" if number else "No."}
        for number, sample in enumerate(held_out)
    ]
    file = tmp_path / "contexts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    reading = {"form": "text", "prompt_end": "\n", "marker": ["So:"], "context_template": "[{context}] "}
    named = {"alone": str(models / "model"), "told": str(models / "model")}
    plan = prepare(
        EvaluateConfig(models=named, contexts={"told": str(file)}, reading=reading, data=data, max_prompt_tokens=88)
    )
    questions = [sample.prompt[0]["content"] for sample in held_out]  # type: ignore[index]
    assert [sample.prompt for sample in plan.prompts["alone"]] == [f"{question}\n" for question in questions]
    assert [sample.prompt for sample in plan.prompts["told"]] == [
        f"{question}\n{context}" for question, context in zip(questions, ("", "[1] ", "[2] "), strict=True)
    ]
    assert list(plan.samples) == list(held_out)
    assert "1 of 3 contexts of told lack the marker" in caplog.text


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a reward model of it, and one of another tokenizer."""
    directory = tmp_path_factory.mktemp("models")
    write_model(directory / "model", tied=True)
    write_model(directory / "larger", tied=True, vocab_size=340)
    write_reward_model(directory / "model", directory / "reward")
    write_reward_model(directory / "larger", directory / "other")
    return directory


def write_reward_model(start: Path, directory: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1)
        torch.nn.init.normal_(model.score.weight)
    model.config.score_mean = 0.25
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(start).save_pretrained(directory)


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_what_cannot_work_is_one_sentence_and_status_2_before_anything_starts(
    case: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, sentence = BAD_RECIPES[case]
    for name in ("model", "other"):
        (tmp_path / name).symlink_to(models / name)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1?"}\n{"prompt": "2+2?"}\n')
    (tmp_path / "answers.jsonl").write_text('{"sample_id": "elsewhere/1", "answer": "2"}\n')

    def started(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be started for this")

    monkeypatch.setattr("troupe.actors.placement._connect", started)
    fitting = "max_prompt_tokens=88"  # beside 40 of an answer, what the model takes
    given = [fitting, *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)]
    if not any(argument.startswith("data=") for argument in given):
        given += ["data.num_train=100", "data.num_heldout=8"]
    monkeypatch.setattr(sys, "argv", ["jobs/evaluate.py", *given, f"output={tmp_path / 'out'}"])
    with pytest.raises(SystemExit) as ended:
        run_program(evaluate, EvaluateConfig, "jobs/evaluate.py")
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_reward_model_sits_where_the_engines_sat() -> None:
    table = evaluation_seats(
        EvaluateConfig(
            model="runs/x",
            generator={"num_engines": 2, "tensor_parallel_size": 2},
            reward_model={"path": "r", "num_ranks": 3},
        ),
        device="cuda",
    )
    assert [(seat.role, seat.bundle, seat.bundle_gpus, seat.num_gpus) for seat in table] == [
        ("generator", 0, 2, 2),
        ("generator", 1, 2, 2),
        ("reward_model", 0, 2, 1),
        ("reward_model", 1, 2, 1),
        ("reward_model", 2, 1, 1),
    ]


def test_locate_is_the_name_itself_for_a_hub_model_and_a_plain_directory(models: Path) -> None:
    assert locate("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    assert locate(str(models / "model")) == str(models / "model")


# -- files -------------------------------------------------------------------------------------------------------


def row(number: int, prediction: float, reference: float | None) -> AnswerRow:
    return AnswerRow(
        sample_id=f"s/{number}",
        prompt='Say "yes",\nplease',
        reference="yes",
        prediction="no",
        finish_reason="stop",
        score_prediction=prediction,
        score_reference=reference,
        metrics={"rouge": 0.5, "accuracy": 1.0} if number else {"rouge": 0.25},
    )


def test_the_difference_to_the_references_is_over_the_same_examples() -> None:
    measured = estimate_metrics([row(0, 1.0, None), row(1, 3.0, 1.0), row(2, 2.0, 2.0)], seed=0)
    assert measured["reward"].mean == 2.0
    assert measured["reward_reference"].mean == 1.5
    assert measured["reward_difference"].mean == 1.0  # (3 - 1 + 2 - 2) / 2; the first has no reference
    assert measured["accuracy"].mean == 1.0  # over the two that have it


def test_a_csv_reads_back_as_it_was_written_with_a_column_for_each_metric() -> None:
    first, second = csv.DictReader(as_csv([row(0, -1.5, None), row(1, 3.0, 1.0)]).splitlines(keepends=True))
    assert first["prompt"] == 'Say "yes",\nplease'
    assert (first["score_prediction"], first["score_reference"], first["accuracy"]) == ("-1.5", "", "")
    assert (second["score_reference"], second["accuracy"]) == ("1.0", "1.0")


def test_the_markdown_tables_have_a_model_per_row() -> None:
    models = {"sft": estimate_metrics([row(0, 1.0, 2.0)], seed=0), "ppo": estimate_metrics([row(0, 3.0, 2.0)], seed=0)}
    page = as_markdown(result_tables(models, {}), lead="# Evaluation")
    assert "| model | reward | reward of the references | difference |" in page
    assert "| ppo | 3.000 (3.000 .. 3.000) | 2.000 (2.000 .. 2.000) | 1.000 (1.000 .. 1.000) |" in page
    assert "Comparisons" not in page


def test_stored_answers_are_those_of_the_same_settings_and_samples_or_none(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    answers = {"s/1": Branch(token_ids=[4, 5], text="née", finish_reason="length")}
    store.write("sft", answers, {"seed": 0, "weights": "ab"})
    assert store.read("sft", ["s/1"], {"seed": 0, "weights": "ab"}) == answers
    assert store.read("sft", ["s/1"], {"seed": 1, "weights": "ab"}) is None
    assert store.read("sft", ["s/1", "s/2"], {"seed": 0, "weights": "ab"}) is None
    assert store.read("ppo", ["s/1"], {"seed": 0, "weights": "ab"}) is None


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"answer": "2"}, "field 'sample_id' is missing"),
        ({"sample_id": "s/1"}, "no answer; its text must be in one of the fields prediction, answer, text"),
        ({"sample_id": "s/0", "text": "2"}, "line 2: a second answer to s/0"),
    ],
)
def test_answers_of_a_file_say_which_line_is_wrong(tmp_path: Path, line: dict[str, str], sentence: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"sample_id": "s/0", "text": ""}\n' + json.dumps(line) + "\n")
    with pytest.raises(DataError, match=sentence):
        read_answers(path, [Sample(sample_id="s/0", prompt="?")])


def test_an_answer_known_by_its_text_ends_with_its_turn_unless_it_was_cut_off(models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "model")
    whole = with_tokens(Branch(token_ids=(), text="3 + 5 = 8"), tokenizer)
    cut = with_tokens(Branch(token_ids=(), text="3 + 5 = 8", finish_reason="length"), tokenizer)
    assert whole.token_ids == encode_answer(tokenizer, "3 + 5 = 8")
    assert list(whole.token_ids) == [*cut.token_ids, tokenizer.eos_token_id]


def test_a_reward_model_with_several_labels_is_refused(models: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(models / "model", num_labels=3)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has 3 labels, a reward model has one"):
        check_model(str(tmp_path), scalar=True, tokenizer=False)


# -- the job -----------------------------------------------------------------------------------------------------


def shorter(sample: Sample, branch: Branch) -> float:
    """A judge that sees both answers: 1 when this one has fewer characters, 0.5 when as many."""
    ours, others = len(branch.text), len(sample.fields["against"])
    return 0.5 if ours == others else float(ours < others)


@pytest.fixture(scope="module")
def examined(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an evaluation that crashed in its last phase: the engine and the reward model had done their
    work.
    """
    output = tmp_path_factory.mktemp("evaluation")
    with pytest.raises(RewardError, match="a bug"):
        evaluate(recipe(models, output, metrics=[{"fn": "tests.light_rewards:broken"}]))
    assert {path.name for path in output.iterdir()} == {"recipe.yaml", "generated"}
    return output


def recipe(directory: Path, output: Path, **given: Any) -> EvaluateConfig:
    settings: dict[str, Any] = {
        "models": {"tiny": str(directory / "model")},
        "data": {"type": "word_problems", "num_train": 100, "num_heldout": 8},
        "num_samples": SAMPLES,
        "max_prompt_tokens": 100,
        "max_response_tokens": 12,
        "metrics": [],
        "rouge": True,
        "reward_model": {"path": str(directory / "reward"), "precision": "fp32"},
        "precision": "fp32",
        "temperature": 1.0,
        "generator": {"cpu_cache_gib": 0.1},
        "output": str(output),
    }
    return EvaluateConfig(**(settings | given))


@pytest.fixture
def without_engines(examined: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Evaluates once more, in this process; an engine that is started fails. Returns metrics.json."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("the answers are there")

    monkeypatch.setattr("troupe.evaluation.collection.generate", started)
    monkeypatch.setattr("troupe.actors.placement._connect", started)

    def again(settings: EvaluateConfig) -> dict[str, Any]:
        inline = settings.model_copy(update={"placement": settings.placement.model_copy(update={"backend": "inline"})})
        result = evaluate(inline)
        assert {examined / "metrics.json", examined / "answers" / "tiny.csv"} <= set(result.files)
        means = {name: {key: one.mean for key, one in metrics.items()} for name, metrics in result.metrics.items()}
        written = json.loads((examined / "metrics.json").read_text())["models"]
        assert means == {name: {key: one["mean"] for key, one in of_name.items()} for name, of_name in written.items()}
        return dict(json.loads((examined / "metrics.json").read_text()))

    return again


def test_a_second_call_goes_on_from_the_answers_and_every_number_can_be_recomputed_from_them(
    models: Path, examined: Path, tmp_path: Path, without_engines: Callable[..., dict[str, Any]]
) -> None:
    samples = load_data(recipe(models, examined).data).heldout[:SAMPLES]
    lines = [{"sample_id": sample.sample_id, "answer": str(sample.gold)} for sample in samples]
    (tmp_path / "human.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measured = without_engines(recipe(models, examined, against=str(tmp_path / "human.jsonl"), tie_margin=0.02))

    rows = read_lines(examined / "answers" / "tiny.jsonl")
    assert [row["sample_id"] for row in rows] == [sample.sample_id for sample in samples]
    generated = {line["sample_id"]: line for line in read_lines(examined / "generated" / "tiny.jsonl")}
    assert all(row["prediction"] == generated[row["sample_id"]]["text"] for row in rows)

    # The scores are those of the plain library: the last token of prompt and answer, less the mean in the config.
    tokenizer = AutoTokenizer.from_pretrained(models / "reward")
    judge = AutoModelForSequenceClassification.from_pretrained(models / "reward").eval()

    def score(sample: Sample, answer: list[int]) -> float:
        with torch.no_grad():
            ids = torch.tensor([[*encode_prompt(tokenizer, sample), *answer]])
            hidden = judge.base_model(ids).last_hidden_state[0, -1]
            return float(judge.score(hidden)) - 0.25

    for sample, found in zip(samples, rows, strict=True):
        assert found["score_prediction"] == pytest.approx(
            score(sample, generated[sample.sample_id]["token_ids"]), abs=1e-4
        )
        assert found["score_reference"] == pytest.approx(
            score(sample, encode_answer(tokenizer, str(sample.gold))), abs=1e-4
        )

    own = [row["score_prediction"] for row in rows]
    others = [row["score_reference"] for row in rows]  # the file's answers are the references
    tiny, compared = measured["models"]["tiny"], measured["comparisons"]["tiny against human"]
    assert tiny["reward"]["mean"] == pytest.approx(sum(own) / SAMPLES)
    assert tiny["reward_difference"]["mean"] == pytest.approx((sum(own) - sum(others)) / SAMPLES)
    assert tiny["rouge"]["mean"] == pytest.approx(
        sum(row["metrics"][f"rouge/{name}"] for row in rows for name in ("rouge1", "rouge2", "rougeL")) / 3 / SAMPLES
    )
    assert measured["models"]["human"]["rouge/rouge1"]["mean"] == 1.0
    assert measured["models"]["human"]["reward_difference"]["mean"] == 0.0
    differences = [a - b for a, b in zip(own, others, strict=True)]
    assert compared["win_rate"]["mean"] == pytest.approx(sum(d > 0 for d in differences) / SAMPLES)
    assert compared["win_share"]["mean"] == pytest.approx(sum(d >= 0.02 for d in differences) / SAMPLES)
    assert compared["loss_share"]["mean"] == pytest.approx(sum(d <= -0.02 for d in differences) / SAMPLES)
    assert measured["counts"] == {"samples": SAMPLES, "prompts_too_long": 0}
    assert measured["settings"]["judge"] == "reward_model"

    page = (examined / "results.md").read_text()
    assert "| model | ROUGE-1 | ROUGE-2 | ROUGE-L | average |" in page
    assert "| tiny against human |" in page
    with open(examined / "answers" / "tiny.csv", newline="") as file:
        assert [float(line["score_prediction"]) for line in csv.DictReader(file)] == own


def test_a_model_against_a_copy_of_itself_ties_everywhere(
    models: Path, examined: Path, without_engines: Callable[..., dict[str, Any]]
) -> None:
    for suffix in (".jsonl", ".settings.json"):
        shutil.copy(examined / "generated" / f"tiny{suffix}", examined / "generated" / f"copy{suffix}")
    paths = {"tiny": str(models / "model"), "copy": str(models / "model")}
    measured = without_engines(recipe(models, examined, models=paths, against="tiny"))
    compared = measured["comparisons"]["copy against tiny"]
    assert (compared["tie_share"]["mean"], compared["win_rate"]["mean"], compared["length_ratio"]["mean"]) == (1, 0, 1)
    assert measured["models"]["copy"] == measured["models"]["tiny"]


def test_a_judge_may_be_a_function_that_sees_both_answers(
    models: Path, examined: Path, without_engines: Callable[..., dict[str, Any]]
) -> None:
    # The references are numbers of one or two characters: no answer of this model that has text is shorter.
    measured = without_engines(
        recipe(
            models,
            examined,
            against="reference",
            reward_model=None,
            rouge=False,
            judge="tests.evaluation.test_evaluate:shorter",
        )
    )
    compared = measured["comparisons"]["tiny against reference"]
    rows = read_lines(examined / "answers" / "tiny.jsonl")
    judged = [row["metrics"]["tests.evaluation.test_evaluate:shorter"] for row in rows]
    expected = [
        1.0 if len(r["prediction"]) < len(r["reference"]) else 0.5 * (len(r["prediction"]) == len(r["reference"]))
        for r in rows
    ]
    assert judged == expected
    assert compared["average_reward"]["mean"] == pytest.approx(sum(judged) / SAMPLES)
    assert compared["average_reference_reward"]["mean"] == 0.5  # the references against themselves
    assert rows[0]["score_prediction"] is None


def test_other_sampling_asks_the_model_again(
    models: Path, examined: Path, without_engines: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"), pytest.raises(AssertionError, match="the answers are there"):
        without_engines(recipe(models, examined, seed=1))
    assert "tiny answers again: seed changed" in caplog.text

"""The scalar head: it reads the position that Hugging Face's own classifier reads, and it is trained, saved and refused
as it should be.

Hugging Face's `...ForSequenceClassification`, run on one unpadded sequence, returns the head's output at the last
token.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, MistralConfig, PreTrainedConfig

from tests.actors.small import SMALL, VOCAB, ragged, write_model, write_weights
from tests.actors.test_engine import weights_of
from troupe.actors.engine import Engine
from troupe.actors.frozen import FrozenModel, FrozenWorker
from troupe.actors.workers import InlineWorkers
from troupe.algorithms.attention import PACKED_ATTENTION
from troupe.algorithms.loading import load_model
from troupe.algorithms.objective import RankingObjective, ValueObjective
from troupe.algorithms.packing import Batch, last_tokens, pack
from troupe.algorithms.padding import pad_apart
from troupe.algorithms.reading import InferenceModel
from troupe.algorithms.values import PackedScalarModel, Reads
from troupe.config.models import LoraConfig, PolicyConfig
from troupe.errors import CheckpointError
from troupe.records import Branch, Group, Sample

pytestmark = pytest.mark.usefixtures("one_rank")

WINDOW = MistralConfig(
    vocab_size=VOCAB,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    sliding_window=6,  # the longest of the ragged sequences has 50 tokens
)
ARCHITECTURES = {"branches": SMALL, "one sequence per row": WINDOW}


def write_scalar_model(config: PreTrainedConfig, directory: Path, *, score_mean: float | None = None) -> str:
    """A random classifier of one label, its matrices six times the usual size, as `small.write_weights` does it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = type(config)(**{**config.to_dict(), "num_labels": 1})
        model = AutoModelForSequenceClassification.from_config(settings).float()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6)
    if score_mean is not None:
        model.config.score_mean = score_mean
    model.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A scalar model of each architecture."""
    root = tmp_path_factory.mktemp("scalar")
    return {name: write_scalar_model(config, root / name) for name, config in ARCHITECTURES.items()}


def by_hugging_face(path: str, sequences: list[list[int]]) -> torch.Tensor:
    """Its own forward pass on each sequence alone."""
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        return torch.stack([model.eval()(input_ids=torch.tensor([ids])).logits[0, 0] for ids in sequences])


def by_us(path: str, groups: list[Group], reads: Reads, row_tokens: int = 40) -> torch.Tensor:
    model = load_model(path, "fp32", head="scalar", trained_head=True)
    branches = model.config._attn_implementation == PACKED_ATTENTION
    packed, batch = PackedScalarModel(model).eval(), Batch.from_groups(groups)
    values = torch.full((batch.num_tokens,), torch.nan)
    with torch.no_grad():
        for row in pack(batch, row_tokens, branches=branches):
            values[row.token_index] = packed(row, reads=reads)[0]
    return values


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_branchs_score_is_hugging_faces_score_of_prompt_and_branch_alone(
    paths: dict[str, str], architecture: str
) -> None:
    groups = ragged()
    sequences = [[*group.prompt_ids, *branch.token_ids] for group in groups for branch in group.branches]
    ends = last_tokens(Batch.from_groups(groups).branch_ids)
    assert (load_model(paths[architecture], "fp32", head="scalar").config._attn_implementation == PACKED_ATTENTION) == (
        architecture == "branches"
    )
    scores = by_us(paths[architecture], groups, "after")[ends]
    expected = by_hugging_face(paths[architecture], sequences)
    assert expected.std() > 1  # or 1e-5 would prove little
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_before_a_token_is_after_the_one_before_it_and_before_the_first_is_after_the_prompt(
    paths: dict[str, str], architecture: str
) -> None:
    groups = ragged()
    batch = Batch.from_groups(groups)
    before, after = (by_us(paths[architecture], groups, reads) for reads in ("before", "after"))
    first = torch.ones(batch.num_tokens, dtype=torch.bool)
    first[1:] = batch.branch_ids[1:] != batch.branch_ids[:-1]
    later = (~first).nonzero().flatten()
    torch.testing.assert_close(before[later], after[later - 1], atol=1e-5, rtol=1e-5)
    prompts = by_hugging_face(paths[architecture], [list(group.prompt_ids) for group in groups])
    torch.testing.assert_close(before[first], prompts[batch.group_ids], atol=1e-5, rtol=1e-5)


# -- frozen ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def frozen(path: str) -> Iterator[FrozenModel]:
    """A frozen scalar model in this process."""
    model = FrozenModel(InlineWorkers(FrozenWorker, [{"rank": 0, "world_size": 1}], role="reward_model"), scalar=True)
    try:
        model.start(path, precision="fp32", row_tokens=40, offload=False)
        model.ready(60)
        yield model
    finally:
        model.shutdown()


def test_scores_in_bf16_are_told_apart_more_finely_than_bf16_could(paths: dict[str, str]) -> None:
    batch = Batch.from_groups(ragged())
    scores = InferenceModel(paths["branches"], head="scalar", precision="bf16", row_tokens=512).scores(batch)
    exact = InferenceModel(paths["branches"], head="scalar", precision="fp32", row_tokens=512).scores(batch)
    assert scores == pytest.approx(exact, rel=0.05, abs=0.5)  # what the layers below lose in bf16
    assert bool((scores != scores.bfloat16().float()).all())


def test_the_score_mean_of_the_config_is_subtracted(paths: dict[str, str], tmp_path: Path) -> None:
    shifted = write_scalar_model(SMALL, tmp_path, score_mean=1.5)
    batch = Batch.from_groups(ragged())
    with frozen(paths["branches"]) as plain, frozen(shifted) as less:
        torch.testing.assert_close(less.scores(batch), plain.scores(batch) - 1.5)


def test_a_model_without_a_head_cannot_score_and_is_told_where_to_get_one(tmp_path: Path) -> None:
    path = write_weights(SMALL, tmp_path)
    with (
        pytest.raises(CheckpointError, match=r"has no trained scalar head, .*; train one with jobs/train_reward_model"),
        frozen(path),
    ):
        pass


# -- trained -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scalar_engine(path: str, **settings: Any) -> Iterator[Engine]:
    defaults = {"precision": "fp32", "zero_stage": 0, "learning_rate": 1e-3, "schedule": "constant"}
    pad_token = settings.pop("pad_token", None)
    built = Engine(path, PolicyConfig(**{**defaults, **settings}), total_steps=10, head="scalar", pad_token=pad_token)
    try:
        yield built
    finally:
        built.engine.destroy()


def ranked() -> Batch:
    """The ragged groups that have two branches or more; each branch is better than the next."""
    groups = [group for group in ragged() if len(group.branches) > 1]
    batch = Batch.from_groups(groups)
    ranks = torch.cat([torch.arange(len(group.branches)) for group in groups]).float()
    weights = torch.full((batch.num_tokens,), 1 / batch.num_groups)
    return batch.with_columns(ranks=ranks[batch.branch_ids], group_weights=weights)


def step(built: Engine) -> dict[str, float]:
    objective = RankingObjective()
    return built.update(ranked(), objective, **objective.options)


def test_a_model_without_a_head_starts_its_training_at_zero_for_everything(tmp_path: Path) -> None:
    with scalar_engine(write_weights(SMALL, tmp_path)) as built:
        assert torch.count_nonzero(built.outputs(ranked(), reads="after")) == 0
        # All scores are equal: every pair is a coin toss, -log sigmoid(0) = ln 2, and equal scores are right one half.
        metrics = step(built)
        assert metrics["loss"] == pytest.approx(0.693147, abs=1e-6)
        assert metrics["reward_model/accuracy"] == pytest.approx(0.5, abs=1e-6)
        assert torch.count_nonzero(built.outputs(ranked(), reads="after")) > 0


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_what_training_saves_is_a_hugging_face_classifier_with_its_score_mean(
    paths: dict[str, str], tmp_path: Path, zero_stage: int
) -> None:
    groups = ragged()
    with scalar_engine(paths["branches"], zero_stage=zero_stage) as built:
        step(built)
        raw = built.outputs(Batch.from_groups(groups), reads="after")
        built.model.config.score_mean = -0.75
        built.save(str(tmp_path), trainer_state=False)
    assert json.loads((tmp_path / "config.json").read_text())["score_mean"] == -0.75
    ends = last_tokens(Batch.from_groups(groups).branch_ids)
    sequences = [[*group.prompt_ids, *branch.token_ids] for group in groups for branch in group.branches]
    # Hugging Face's class knows no mean; ours takes off -0.75.
    torch.testing.assert_close(by_hugging_face(str(tmp_path), sequences), raw[ends], atol=1e-5, rtol=1e-5)
    with frozen(str(tmp_path)) as loaded:
        torch.testing.assert_close(loaded.scores(Batch.from_groups(groups)), raw[ends] + 0.75, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["a reserved token", "spare rows", "no spare row"])
def test_plain_transformers_scores_what_was_saved_alike_padded_and_not(tmp_path: Path, case: str) -> None:
    """A text ends with the end token; where that also pads, plain transformers would read the token before it."""
    path = write_model(tmp_path / "model", tied=True)
    if case != "a reserved token":
        for file in (tmp_path / "model").glob("tokenizer*.json"):
            file.write_text(file.read_text().replace("<pad>", "<other>"))
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.eos_token  # as in many bases
    config = AutoConfig.from_pretrained(path)
    config.pad_token_id, config.vocab_size = tokenizer.eos_token_id, len(tokenizer) + 8 * (case == "spare rows")
    write_scalar_model(config, tmp_path / "model")
    vocabulary = tokenizer.get_vocab()
    texts = [text + tokenizer.eos_token for text in ("3 + 4 is", "a much longer text of 12 apples", "7")]
    sequences = [tokenizer(text)["input_ids"] for text in texts]
    with scalar_engine(path, pad_token=pad_apart(tokenizer)) as built:
        built.model.config.score_mean = 0.5
        built.save(str(tmp_path / "saved"), tokenizer, trainer_state=False)
        groups = [
            Group(sample=Sample(sample_id="", prompt=""), prompt_ids=ids[:1], branches=[Branch(token_ids=ids[1:])])
            for ids in sequences
        ]
        batch = Batch.from_groups(groups)
        ours = built.outputs(batch, reads="after")[last_tokens(batch.branch_ids)]

    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.pad_token == ("<pad>" if case == "a reserved token" else "<|pad|>")
    assert saved.get_vocab().items() >= vocabulary.items(), "it reads the policy's tokens"
    assert not any(saved.pad_token_id in ids for ids in sequences)
    config = AutoConfig.from_pretrained(tmp_path / "saved")
    assert (config.pad_token_id, config.score_mean) == (saved.pad_token_id, 0.5)
    torch.testing.assert_close(by_hugging_face(str(tmp_path / "saved"), sequences) - 0.5, ours, atol=1e-5, rtol=0)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    for side in ("left", "right"):
        padded = saved(texts, padding=True, padding_side=side, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            scores = model(**padded).logits[:, 0] - config.score_mean
        torch.testing.assert_close(scores, ours, atol=1e-5, rtol=0)


def changed(path: str, train: Callable[[Engine], Any], **settings: Any) -> set[str]:
    """Names of the weights that `train` changed."""
    with scalar_engine(path, **settings) as built:
        before = weights_of(built)
        train(built)
        after = weights_of(built)
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_frozen_layers_are_the_lowest_ones_and_the_embedding_and_nothing_else(
    paths: dict[str, str], zero_stage: int
) -> None:
    # Half of two layers is layer 0.
    names = changed(paths["branches"], lambda built: None, zero_stage=zero_stage)
    assert names == set()
    trained = changed(paths["branches"], step, zero_stage=zero_stage, frozen_layers=0.5, weight_decay=0.1)
    with scalar_engine(paths["branches"]) as built:
        every = {name for name, _, _ in built.weight_shapes()}
    kept = {name for name in every if "embed_tokens" in name or ".layers.0." in name}
    assert kept
    assert trained == every - kept


def test_an_adapter_on_a_scalar_model_trains_the_head_and_is_saved_with_it(
    paths: dict[str, str], tmp_path: Path
) -> None:
    batch = ranked()
    settings = {"lora": LoraConfig(rank=4, alpha=8), "learning_rate": 0.02}
    with scalar_engine(paths["branches"], **settings) as built:
        names = {name for name, parameter in built.packed.named_parameters() if parameter.requires_grad}
        assert {name for name in names if ".lora_" not in name} == {"model.base_model.model.score.weight"}
        before = weights_of(built)
        step(built)
        step(built)  # B starts at zero: A has a gradient from the second step on
        after = weights_of(built)
        # The head is trained whole, every projection through its adapter; norms, biases and the embedding stay.
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == {name for name in before if name.endswith("_proj.weight") or name == "score.weight"}
        built.model.config.score_mean = 0.25
        expected = built.outputs(batch, reads="after")
        built.save(str(tmp_path), trainer_state=False)
    with frozen(str(tmp_path)) as loaded:
        torch.testing.assert_close(loaded.scores(batch), expected[last_tokens(batch.branch_ids)], atol=1e-4, rtol=1e-4)


def test_a_critic_reads_before_its_tokens_when_it_learns(paths: dict[str, str]) -> None:
    batch = ranked()
    objective = ValueObjective(clip=None)
    with scalar_engine(paths["branches"]) as built:
        values = built.outputs(batch, reads="before")
        weights = torch.full((batch.num_tokens,), 1 / batch.num_tokens)
        # Returns that are its own values: were another position read in the step, the error would not be 0.
        batch = batch.with_columns(old_values=values, returns=values, loss_weights=weights, metric_weights=weights)
        assert built.update(batch, objective, **objective.options)["value/error"] == pytest.approx(0, abs=1e-5)

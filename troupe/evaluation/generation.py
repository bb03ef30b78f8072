"""The two phases of an evaluation: engines answer, one model after the other; then a reward model scores all answers.

A model has left its device before the next one takes it, so two models fit one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from troupe.actors.generator import GeneratorWorker
from troupe.actors.generators import Generators, generator_arguments, start_generators
from troupe.actors.placement import Cluster, RankPlacement
from troupe.actors.reward_model import LABEL, RewardModel
from troupe.actors.rewarder import Rewarder
from troupe.agents.episodes import AgentEpisodes
from troupe.chat import ChatForm, encode_answer, encode_prompt
from troupe.config.evaluation import AnsweringConfig
from troupe.config.models import PretrainedModelConfig, RewardModelConfig
from troupe.errors import TroupeError
from troupe.evaluation.stored_answers import AnswersByRepeat
from troupe.processes.waiting import waiting
from troupe.records import Branch, Group, Sample
from troupe.training.episodes import Episodes
from troupe.training.evaluator import Evaluator
from troupe.training.roles import RoleStarter, start_episodes

ROW_TOKENS = 2560
CLOSING_S = 60


def evaluation_seats(config: AnsweringConfig, *, device: str) -> list[RankPlacement]:
    """Return every rank's bundle: the reward model takes those of the engines, which are gone by then."""
    gpu = int(device == "cuda")
    width = gpu * config.generator.tensor_parallel_size
    engines = config.generator.num_engines
    table = [
        RankPlacement(role="generator", rank=i, bundle=i, bundle_gpus=width, num_gpus=width) for i in range(engines)
    ]
    ranks = 0 if config.reward_model is None else config.reward_model.num_ranks
    for i in range(ranks):
        table.append(
            RankPlacement(
                role="reward_model", rank=i, bundle=i, bundle_gpus=width if i < engines else gpu, num_gpus=gpu
            )
        )
    return table


@contextlib.contextmanager
def evaluation_cluster(config: AnsweringConfig) -> Iterator[Cluster]:
    """Reserve the machines, with a place for every role."""
    cluster = Cluster(config.placement)
    try:
        cluster.reserve(evaluation_seats(config, device=cluster.machine.device), config.generator.init_timeout_s)
        yield cluster
    finally:
        cluster.close()


# -- phase one ------------------------------------------------------------------------------------------------


def generate(
    cluster: Cluster,
    config: AnsweringConfig,
    model_path: str,
    samples: Sequence[Sample],
    form: ChatForm,
    *,
    seeds: Sequence[int],
) -> list[dict[str, Branch]]:
    """Return the model's answer to every sample for each of the seeds; its engines are gone afterwards."""
    with (
        waiting(f"{model_path} answers {len(samples)} prompts"),
        _engines(cluster, config, model_path) as generators,
        _episodes(config, generators, form) as episodes,
    ):
        answers = []
        for seed in seeds:
            evaluator = Evaluator(
                {config.data.type: samples},
                form,
                generators,
                Rewarder([]),
                max_prompt_tokens=config.max_prompt_tokens,
                max_response_tokens=config.max_response_tokens,
                sampling=config,
                seed=seed,
                timeout_s=config.timeout_s,
                answers=episodes,
            )
            (groups,) = evaluator.evaluate().groups.values()
            answers.append({group.sample.sample_id: group.branches[0] for group in groups})
        return answers


@contextlib.contextmanager
def _episodes(
    config: AnsweringConfig, generators: Generators, form: ChatForm
) -> Iterator[Episodes | AgentEpisodes | None]:
    """Start what plays the games or runs the agent, where there is one."""
    episodes = start_episodes(config, generators, form, max_length=config.longest_sequence[0])
    try:
        yield episodes
    finally:
        if episodes is not None:
            episodes.shutdown()


@contextlib.contextmanager
def _engines(cluster: Cluster, config: AnsweringConfig, model_path: str) -> Iterator[Generators]:
    arguments = generator_arguments(
        model_path,
        config.generator,
        max_length=config.longest_sequence[0],
        precision=cluster.machine.precision(config.precision),
        transport=cluster.machine.weight_transport(colocated=False),
        sleep=False,
        seed=config.seed,
        trust_remote_code=config.trust_remote_code,
    )
    group = cluster.workers(GeneratorWorker, arguments, role="generator", max_concurrency=1000)
    generators = Generators(group, config.generator, sleeps=False)
    try:
        start_generators(group, config.generator)
        yield generators
    finally:
        # Closed first: an engine's own processes would hold the device for a while after their parent was killed.
        with contextlib.suppress(TroupeError):
            group.gather(group.start(GeneratorWorker.close), CLOSING_S, "closing")
        generators.shutdown()


# -- phase two ------------------------------------------------------------------------------------------------


def reward_scores(
    cluster: Cluster,
    config: AnsweringConfig,
    settings: RewardModelConfig,
    samples: Sequence[Sample],
    answers: AnswersByRepeat,
) -> dict[tuple[str, int], dict[str, float]]:
    """Return (name, repeat) -> sample_id -> the reward model's score; a missing answer has none.

    All answers to a prompt share one row and its prompt, encoded as the reward model's own tokenizer encodes it; equal
    answers are scored once, so that they cannot differ by rounding.
    """
    model_config = PretrainedModelConfig(path=settings.path, trust_remote_code=settings.trust_remote_code)
    with contextlib.ExitStack() as stack:
        casting = RoleStarter(
            stack,
            cluster,
            model_config,
            settings.path,
            colocated=False,
            precision=cluster.machine.precision(settings.precision),
            seed=config.seed,
        )
        stack.enter_context(waiting(f"{settings.path} scores the answers"))
        model = casting.reward_model(settings, row_tokens=ROW_TOKENS, timeout_s=config.generator.init_timeout_s)
        return _scores(model, casting.form, samples, answers)


def _scores(
    model: RewardModel, form: ChatForm, samples: Sequence[Sample], answers: AnswersByRepeat
) -> dict[tuple[str, int], dict[str, float]]:
    submitted = []
    for sample in samples:
        branches = {
            key: with_tokens(given[sample.sample_id], form)
            for key, given in answers.items()
            if sample.sample_id in given
        }
        if not branches:
            continue
        distinct = {tuple(branch.token_ids): branch for branch in branches.values()}
        group = Group(sample=sample, prompt_ids=encode_prompt(form, sample), branches=list(distinct.values()))
        submitted.append((sample.sample_id, branches, list(distinct), model.score(group)))
    scores: dict[tuple[str, int], dict[str, float]] = {key: {} for key in answers}
    for sample_id, branches, distinct_ids, future in submitted:
        found = {ids: parts[LABEL] for ids, parts in zip(distinct_ids, future.result(), strict=True)}
        for key, branch in branches.items():
            scores[key][sample_id] = found[tuple(branch.token_ids)]
    return scores


def with_tokens(branch: Branch, form: ChatForm) -> Branch:
    """Return a branch of known text as a model would have sampled it; a cut one has no end of turn."""
    if branch.token_ids:
        return branch
    ids = encode_answer(form, branch.text)
    kept = ids[:-1] if branch.truncated and len(ids) > 1 else ids
    return Branch(token_ids=kept, text=branch.text, finish_reason=branch.finish_reason)

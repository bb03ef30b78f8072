"""The gate names the engine and the tensor, lets rounding pass, and no number that is none."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from troupe.actors.arrivals import digest
from troupe.actors.consistency import LogprobCheck
from troupe.actors.generator import GeneratorWorker
from troupe.actors.generators import Generators
from troupe.actors.gradient_sums import GradientSums
from troupe.config.models import ConsistencyConfig, GeneratorConfig
from troupe.errors import ConsistencyError
from troupe.records import Branch

PROMPTS = [[1, 2, 3], [4], [5, 6]]
ANSWERS = [[10, 11], [12], [13, 14, 15]]


class Engines:
    """Engines that answer the probes with ANSWERS, and score and hold what a test says."""

    role = "generator"

    def __init__(self, *, logprobs: list[list[list[float]]] | None = None, arrived: list[Any] | None = None) -> None:
        self.logprobs, self.arrived = logprobs or [], arrived or []
        self.size = max(len(self.logprobs), len(self.arrived), 1)
        self.asked: list[Any] = []

    def submit(self, rank: int, method: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        if method is GeneratorWorker.submit:
            self.asked += args[1]
            answer.set_result(None)
        elif method is GeneratorWorker.poll:
            answer.set_result([(place, [Branch(token_ids=ids)]) for place, ids in enumerate(ANSWERS)])
        elif method is GeneratorWorker.logprobs:
            answer.set_result(self.logprobs[rank])
        else:
            answer.set_result(self.arrived[rank])
        return answer

    def start(self, method: Any, *args: Any) -> list[Future[Any]]:
        return [self.submit(rank, method, *args) for rank in range(self.size)]

    def gather(self, futures: list[Future[Any]], timeout_s: float | None = None, phase: str = "") -> list[Any]:
        return [future.result(0) for future in futures]


def of(engines: Engines) -> Generators:
    return Generators(engines, GeneratorConfig(num_engines=engines.size), sleeps=False)  # type: ignore[arg-type]


def gate(max_gap: float | None = None, precision: str = "fp32", **settings: Any) -> LogprobCheck:
    return LogprobCheck(PROMPTS, ConsistencyConfig(max_gap=max_gap), precision=precision, **settings)


def prepared(**settings: Any) -> LogprobCheck:
    made = gate(**settings)
    made.prepare(of(Engines()))
    return made


EXPECTED = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
"""Of the six tokens of the answers."""


def scored(*values: float) -> list[list[float]]:
    """An engine's log-probabilities of whole sequences: those of prompts, which are not compared, and these."""
    rest = list(values)
    return [
        [0.0] * (len(prompt) - 1) + [rest.pop(0) for _ in ids] for prompt, ids in zip(PROMPTS, ANSWERS, strict=True)
    ]


def test_the_probes_are_sampled_once_behind_the_ends_of_the_prompts() -> None:
    engines = Engines()
    made = LogprobCheck([[9] * 1000 + ids for ids in PROMPTS], ConsistencyConfig(), precision="fp32", max_length=12)
    made.prepare(of(engines))
    made.prepare(of(Engines()))
    # Scoring generates a token, so 11 remain: 5 for an answer and 6 of its prompt.
    assert [(list(each.prompt_ids), each.max_tokens) for each in engines.asked] == [
        ([9, 9, 9, 1, 2, 3], 5),
        ([9, 9, 9, 9, 9, 4], 5),
        ([9, 9, 9, 9, 5, 6], 5),
    ]
    assert len({each.seed for each in engines.asked}) == 3
    with pytest.raises(ValueError, match="needs a prompt"):
        LogprobCheck([[]], ConsistencyConfig(), precision="fp32")


def test_the_gap_is_the_mean_over_answer_tokens_of_the_worst_engine() -> None:
    near = scored(-1.0006, -2.0, -3.0, -4.0, -5.0, -6.0)
    far = scored(-1.0, -2.0, -3.0, -4.0, -5.003, -6.0)
    found = prepared().measure_gap(EXPECTED, of(Engines(logprobs=[near, far, near])))
    assert found == pytest.approx(0.003 / 6, rel=1e-3)


@pytest.mark.parametrize("wrong", [-5.01, math.nan, -math.inf])
def test_an_engine_that_computes_something_else_is_named(wrong: float) -> None:
    right, other = scored(*EXPECTED.tolist()), scored(-1.0, -2.0, -3.0, -4.0, wrong, -6.0)
    with pytest.raises(
        ConsistencyError, match=r"^engine 1 and the trainer disagree by .* on 6 probe tokens \(allowed: 0.001\)"
    ):
        prepared().measure_gap(EXPECTED, of(Engines(logprobs=[right, other])))


def test_a_bound_of_the_recipe_or_of_the_trainers_rounding_is_named_in_the_refusal() -> None:
    off = Engines(logprobs=[scored(-1.6, *EXPECTED.tolist()[1:])])  # 0.1 nats a token
    assert prepared(max_gap=0.2).measure_gap(EXPECTED, of(off)) == pytest.approx(0.1)
    with pytest.raises(ConsistencyError, match=r"allowed: 0\.05, as consistency\.max_gap says"):
        prepared(max_gap=0.05).measure_gap(EXPECTED, of(off))
    rounding = prepared(precision="bf16")
    rounding.noise = 0.01
    with pytest.raises(ConsistencyError, match=r"allowed: 0\.04, of a trainer whose bf16 makes 0\.01"):
        rounding.measure_gap(EXPECTED, of(off))


def test_a_tensor_that_did_not_arrive_is_named_with_its_engine_and_of_many_the_first_three() -> None:
    sent = {f"layer.{number}": number for number in range(5)}
    whole = [(dict(sent), [])]
    check = prepared()
    check.require_arrived(sent, of(Engines(arrived=[whole, whole])))
    lost = [({**sent, "layer.2": 7}, ["head is not what was loaded"])]
    with pytest.raises(ConsistencyError, match=r"engine 1 does .*: layer\.2 is not what was sent; head is not what"):
        check.require_arrived(sent, of(Engines(arrived=[whole, lost])))
    with pytest.raises(ConsistencyError, match=r"layer\.2 is not what was sent and 2 more\. It must not sample"):
        check.require_arrived(sent, of(Engines(arrived=[[({}, [])]])))


# -- what is compared, and summed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("size", [1, 3, 8, 33])
def test_a_digest_knows_every_element_and_not_where_a_tensor_lies(dtype: torch.dtype, size: int) -> None:
    numbers = torch.arange(3 * size).reshape(3, size).to(dtype)
    whole = digest(numbers)
    assert digest(numbers.clone()) == whole
    assert digest(numbers.T.contiguous().T) == whole  # the same tensor, laid out otherwise
    assert digest(torch.cat([torch.ones(1, size).to(dtype), numbers])[1:]) == whole  # within another
    for place in {0, size // 2, 3 * size - 1}:
        changed = numbers.flatten().clone()
        changed[place] += 1
        assert digest(changed) != whole


def test_gradients_of_many_rows_are_summed_in_fp32_and_rounded_once() -> None:
    parameter, unused = (torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)) for _ in range(2))
    frozen = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16), requires_grad=False)
    sums = GradientSums([parameter, unused, frozen])
    parameter.grad = torch.ones(1, dtype=torch.bfloat16)
    sums.take()
    for _ in range(512):  # each of which is lost beside the 1 in bf16, whose next number is 1 + 1 / 128
        assert parameter.grad is None
        parameter.grad = torch.full((1,), 1 / 512, dtype=torch.bfloat16)
        sums.take()
    sums.put_back()
    assert parameter.grad is not None
    assert (parameter.grad.item(), parameter.grad.dtype) == (2.0, torch.bfloat16)
    assert unused.grad is None
    sums.take()
    sums.put_back()  # the next step begins at zero
    assert parameter.grad.item() == 2.0

"""The settings of a chat endpoint: what it costs, and what can be wrong with its address, key and options."""

from __future__ import annotations

from typing import Any

import pytest

from troupe.config.endpoint import BudgetConfig, EndpointConfig, EndpointModelConfig, PricesConfig, check_endpoint

SECRET = "sk-very-secret-0123456789"


def endpoint(**given: Any) -> EndpointConfig:
    return EndpointConfig(**{"base_url": "https://host/v1", "model": "m", "api_key_env": None, **given})


def refusal(**given: Any) -> str:
    with pytest.raises(ValueError, match=r"\S") as error:
        check_endpoint(endpoint(**given))
    return str(error.value)


def test_a_million_tokens_cost_their_price_and_prompts_and_answers_add_up() -> None:
    prices = PricesConfig(prompt_price=3, completion_price=15)
    assert prices.cost(1_000_000, 0) == 3
    assert prices.cost(0, 1_000_000) == 15
    # 400 tokens of a prompt at 3 and 20 of an answer at 15 a million: 1,200 + 300 millionths.
    assert prices.cost(400, 20) == pytest.approx(0.0015)
    assert prices.cost(400, 20) + prices.cost(600, 80) == pytest.approx(prices.cost(1000, 100))


def test_a_limit_of_cost_needs_a_price_of_either_kind() -> None:
    assert not PricesConfig().is_priced
    assert PricesConfig(max_cost=1, prompt_price=0.1).is_priced
    assert PricesConfig(max_cost=1, completion_price=0.1).is_priced
    with pytest.raises(ValueError, match=r"max_cost \(2.5\) needs prices, or nothing would ever cost anything"):
        BudgetConfig(max_cost=2.5)


def test_a_judge_waits_less_for_a_reply_than_a_benchmark_does() -> None:
    model = EndpointModelConfig(base_url="https://host/v1", model="m", max_cost=1, prompt_price=1)
    assert (endpoint().timeout_s, model.timeout_s) == (60, 120)


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/v1", "https://api.openai.com/v1", "http://[::1]:8000/v1", "https://host/a/b/"]
)
def test_an_address_up_to_chat_completions_is_taken(url: str) -> None:
    check_endpoint(endpoint(base_url=url))


@pytest.mark.parametrize(
    "url",
    ["host/v1", "ftp://host/v1", "http://", "http://host:0/v1", "https://host/v1?key=" + SECRET, "https://host/v1#x"],
)
def test_another_address_is_refused_and_not_repeated(url: str) -> None:
    sentence = refusal(base_url=url)
    assert sentence.startswith("argument base_url: it must be http(s)://host/path up to /chat/completions")
    assert SECRET not in sentence


@pytest.mark.parametrize("url", [f"https://me:{SECRET}@host/v1", f"https://{SECRET}@host/v1"])
def test_a_password_in_an_address_is_refused_and_not_repeated(url: str) -> None:
    sentence = refusal(base_url=url)
    assert sentence.startswith("argument base_url: it must not hold a password")
    assert SECRET not in sentence


def test_options_may_not_set_what_is_ours() -> None:
    check_endpoint(endpoint(options={"max_tokens": 9, "temperature": None}))
    assert refusal(options={"stream": True, "max_tokens": 9, "model": "x"}) == (
        "argument options: it may not set model, stream"
    )


def test_the_key_is_named_and_never_given(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = refusal(api_key_env=SECRET)
    assert "it is the NAME of an environment variable" in sentence
    assert SECRET not in sentence
    monkeypatch.delenv("TEST_JUDGE_KEY", raising=False)
    assert "TEST_JUDGE_KEY with the judge's key is not set; export it, or set api_key_env: null" in refusal(
        api_key_env="TEST_JUDGE_KEY"
    )
    monkeypatch.setenv("TEST_JUDGE_KEY", "  ")
    assert "is not set" in refusal(api_key_env="TEST_JUDGE_KEY")


@pytest.mark.parametrize("key", [f"{SECRET} x", f"schlüssel{SECRET}", f"{SECRET}\nx"])
def test_a_key_that_can_be_none_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", key)
    sentence = refusal(api_key_env="TEST_JUDGE_KEY")
    assert "holds spaces or letters that no key has; export it anew" in sentence
    assert SECRET not in sentence


def test_a_key_that_is_there_is_masked_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from troupe.secrets import public_text

    monkeypatch.setenv("TEST_JUDGE_KEY", SECRET)
    check_endpoint(endpoint(api_key_env="TEST_JUDGE_KEY"))
    assert SECRET not in public_text(f"401 for {SECRET}")

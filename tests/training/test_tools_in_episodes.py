"""Calls of tools in a rollout: parsed, answered, masked; parallel, malformed and endless ones."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from tests.actors.scripted import ScriptedGenerators
from tests.serving.served_run import TEMPLATE
from tests.training.test_episodes import branch_turns, submitted, turns_of
from troupe.chat import ChatForm, ChatSettings
from troupe.config.agents import ToolConfig
from troupe.config.rollout import EnvironmentConfig
from troupe.environments.tools import build_tools, with_tools
from troupe.records import Branch, Group, Sample
from troupe.training.episodes import Episodes
from troupe.training.scratch import train_tokenizer

TOKENIZER = train_tokenizer(
    ['user assistant tool system {"name": "calculator", "arguments": {"expression": "1+2"}}'], 400, 512
)
FORM = ChatForm(TOKENIZER, ChatSettings(template=TEMPLATE))
TOOLS = [ToolConfig(fn="calculator")]
ASKED = [Sample(sample_id="s", prompt=[{"role": "user", "content": "What is 12 + 30?"}])]


def call(expression: str, name: str = "calculator") -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': {'expression': expression}})}</tool_call>"


def played(
    *answers: str, samples: Sequence[Sample] = ASKED, max_tokens: int = 2000, **settings: Any
) -> tuple[list[Group], ScriptedGenerators]:
    """Play an episode in which the model gives these answers, in turn."""

    def speak(prompt: str, rng: random.Random) -> str:
        said = prompt.count("<|im_start|>assistant") - 1
        return answers[min(said, len(answers) - 1)]

    generators = ScriptedGenerators(TOKENIZER, speak)
    config = EnvironmentConfig(**{"max_turn_tokens": max_tokens, **settings})
    episodes = Episodes(config, generators, FORM, TOOLS)  # type: ignore[arg-type]
    try:
        prompts = with_tools(samples, build_tools(TOOLS))
        return submitted(episodes, prompts, 1, max_tokens, FORM), generators
    finally:
        episodes.shutdown()


def only(groups: list[Group]) -> Branch:
    (group,) = groups
    (branch,) = group.branches
    return branch


def test_results_are_a_tools_turn_that_is_read_and_not_trained() -> None:
    groups, generators = played(f"Let me see. {call('12 + 30')}", "It is 42.")
    branch = only(groups)
    (_, first), (_, told), (_, last) = turns_of(branch, TOKENIZER)
    assert first == f"Let me see. {call('12 + 30')}<|im_end|>"
    assert told == "\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n"
    assert last == "It is 42.<|im_end|>"
    assert [who for who, *_ in branch_turns(branch)] == ["assistant", "tool calculator", "assistant"]
    assert branch.text == "It is 42."  # what rewards read: no tool can write the answer
    assert branch.outcome is not None
    assert branch.outcome.value == 0
    assert branch.outcome.parts == {"tools/calls": 1, "tools/failed": 0, "tools/malformed": 0}
    prompt = TOKENIZER.decode(groups[0].prompt_ids)
    assert '"name": "calculator"' in prompt  # the model was told of the tool
    # What the second request asks is what was sampled, id by id.
    assert (
        list(generators.rounds[1][0].prompt_ids) == [*groups[0].prompt_ids, *branch.token_ids][: -len(branch_ids(last))]
    )


def branch_ids(text: str) -> list[int]:
    return FORM.text_ids(text)


def test_parallel_calls_have_a_turn_each_in_their_order() -> None:
    branch = only(played(call("1+1") + call("2*3"), "2 and 6.")[0])
    assert turns_of(branch, TOKENIZER)[1][1] == (
        "\n<|im_start|>tool\n2<|im_end|>\n<|im_start|>tool\n6<|im_end|>\n<|im_start|>assistant\n"
    )
    assert branch.outcome is not None
    assert branch.outcome.parts["tools/calls"] == 2


def test_malformed_calls_and_unknown_names_are_told_to_the_model() -> None:
    branch = only(played("<tool_call>{calculator(1+1)", call("1", name="abacus"), call("one"), "2")[0])
    told = [text for trained, text in turns_of(branch, TOKENIZER) if not trained]
    assert "error: the call cannot be read" in told[0]
    assert "error: there is no tool 'abacus'; the tools are calculator" in told[1]
    assert "error: ValueError" in told[2]
    assert branch.text == "2"
    assert branch.outcome is not None
    assert branch.outcome.parts == {"tools/calls": 2, "tools/failed": 2, "tools/malformed": 1}


def test_a_model_that_calls_for_ever_is_cut_off() -> None:
    groups, generators = played(call("1+1"), max_turns=3, unfinished_reward=-1.0)
    branch = only(groups)
    assert len(generators.rounds) == 3
    assert branch.truncated
    assert branch.outcome is not None
    assert (branch.outcome.value, branch.outcome.parts["tools/calls"]) == (-1.0, 3)


def test_an_answer_without_a_call_ends_the_episode_and_one_that_was_cut_is_truncated() -> None:
    assert only(played("42.")[0]).finish_reason == "stop"
    assert only(played("It is forty-two, I believe.", max_tokens=5)[0]).truncated


def test_tools_and_an_environment_go_together() -> None:
    groups, _ = played(call("1+1"), "<answer>2</answer>", "B2", fn="tests.training.test_episodes:Asking")
    branch = only(groups)
    assert branch.outcome is not None
    assert branch.outcome.value == 1.0
    assert branch.outcome.parts["tools/calls"] == 1

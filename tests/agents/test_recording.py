"""Which sequence a request goes on from: the one whose tokens were sampled for just that, or a new one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from troupe.agents.recording import Line, Recording, TokenSequence, shared_prompt
from troupe.chat import ChatForm, ChatSettings, TurnEncoder, encode_answer
from troupe.records import Branch, Message, Score, WeightSpan
from troupe.training.scratch import train_tokenizer

TOKENIZER = train_tokenizer(["user assistant system tool Count to 3. And then? Sure? 1 2 3 look 18"], 340, 512)
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content or '' }}"
    "{% for call in turn.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORM = ChatForm(TOKENIZER, ChatSettings(template=TEMPLATE))
FORGETFUL = TEMPLATE.replace(
    "{{ turn.content or '' }}", "{{ turn.content if loop.last else (turn.content or '').split('</think>')[-1] }}"
)
"""As templates of models that think: thoughts of earlier turns are not shown."""
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def user(words: str) -> Message:
    return {"role": "user", "content": words}


def model(words: str) -> Message:
    return {"role": "assistant", "content": words}


def tool(words: str, call: str = "c1") -> Message:
    return {"role": "tool", "content": words, "tool_call_id": call}


def sampled(words: str) -> Branch:
    ids = encode_answer(FORM, words)
    spans = (WeightSpan(version=4, start=0, end=1), WeightSpan(version=5, start=1, end=len(ids)))
    return Branch(token_ids=ids, text=words, logprobs=[-0.5] * len(ids), weight_versions=spans)


class Talk:
    """One episode's requests, each answered at once."""

    def __init__(self, template: str = TEMPLATE) -> None:
        form = ChatForm(TOKENIZER, ChatSettings(template=template))
        self.recording = Recording(form, TurnEncoder(form, lenient=True))

    def chat(self, *turns: Message, says: str | Message, tools: Any = None) -> Line:
        line = self.recording.chat(turns, tools)
        return self.answered(line, says, messages=turns)

    def text(self, prompt: str | Sequence[int], *, says: str) -> Line:
        line = self.recording.complete(prompt)
        return self.answered(line, says, text=prompt + says if isinstance(prompt, str) else "")

    def answered(self, line: Line, says: str | Message, *, messages: Sequence[Message] = (), text: str = "") -> Line:
        """As an episode has it once the engine's answer is there."""
        turn = model(says) if isinstance(says, str) else says
        line.say(sampled(turn["content"] or ""))
        line.messages = [*messages, turn] if messages else ()
        line.text, line.busy = text, False
        return line


def shown(line: Line) -> str:
    return str(TOKENIZER.decode(line.ids))


# -- conversations -------------------------------------------------------------------------------------------------


def test_a_conversation_grows_as_the_template_shows_it_and_the_models_tokens_alone_are_trained() -> None:
    talk = Talk()
    turns: list[Message] = [{"role": "system", "content": "Be short."}, user("Count.")]
    lines = []
    for words, reply in (("1", "And then?"), ("2", "Sure?"), ("3", "")):
        lines.append(talk.chat(*turns, says=words))
        turns += [model(words), user(reply)]
    assert lines == [lines[0]] * 3  # one and the same
    assert len(talk.recording.lines) == 1
    assert shown(lines[0]) == FORM.render(turns[:-1]).removesuffix("\n")
    trained = [token for token, mask in zip(lines[0].token_ids, lines[0].loss_mask, strict=True) if mask]
    assert TOKENIZER.decode(trained) == "1<|im_end|>2<|im_end|>3<|im_end|>"


def test_an_agent_may_strip_texts_and_name_calls_and_leave_out_content() -> None:
    talk = Talk()
    call: Any = {"id": "call00000", "type": "function", "function": {"name": "look", "arguments": {}}}
    said: Message = {"role": "assistant", "content": None, "tool_calls": [call]}
    first = talk.chat(user("Look."), says=said, tools=[LOOK])
    again: Message = {"role": "assistant", "content": "", "tool_calls": [{**call, "id": "mine"}]}
    assert talk.chat(user(" Look.\n"), again, tool("18", "mine"), says="18", tools=[LOOK]) is first
    other: Any = {**call, "function": {"name": "look", "arguments": {"at": "it"}}}
    changed: Message = {"role": "assistant", "content": None, "tool_calls": [other]}
    assert talk.chat(user("Look."), changed, tool("18"), says="18", tools=[LOOK]) is not first


@pytest.mark.parametrize(
    "request_",
    [
        (user("Count to 3."), model("1"), user("And then?")),  # another first turn
        (user("Count."), model("2"), user("And then?")),  # the model said something else
        (user("Count."), user("1"), user("And then?")),  # or somebody else said it
        (user("Count."),),  # the same request once more
        (user("Count."), model("1")),  # nothing new to answer
        (user("And then?"),),
        (user("Count."), model("1"), user("And then?"), model("2"), user("Sure?")),  # a turn that was never sampled
    ],
)
def test_what_is_not_what_was_sampled_begins_another_line(request_: tuple[Message, ...]) -> None:
    talk = Talk()
    first = talk.chat(user("Count."), says="1")
    before = list(first.ids)
    second = talk.chat(*request_, says="3")
    assert second is not first
    assert first.ids == before
    assert talk.recording.lines == [first, second]


def test_other_tools_are_another_prompt_and_so_another_line() -> None:
    talk = Talk()
    first = talk.chat(user("Count."), says="1", tools=[LOOK])
    turns = (user("Count."), model("1"), user("And then?"))
    assert talk.chat(*turns, says="2") is not first
    assert talk.chat(*turns, says="2", tools=[LOOK]) is first
    plain = talk.chat(user("Sure?"), says="3", tools=())
    assert talk.chat(user("Sure?"), model("3"), user("18"), says="1", tools=None) is plain  # no tools either way


def test_a_fork_of_a_conversation_begins_with_all_that_was_said_and_each_prong_goes_on() -> None:
    talk = Talk()
    begun = (user("Count."), model("1"))
    first = talk.chat(*begun[:1], says="1")
    assert talk.chat(*begun, user("And then?"), says="2") is first
    second = talk.chat(*begun, user("Sure?"), says="3")
    assert second is not first
    assert shown(second).startswith("<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\n1<|im_end|>")
    assert second.loss_mask == [True] * len(second.token_ids)  # what the other line trains is here its prompt
    assert talk.chat(*begun, user("And then?"), model("2"), user("3?"), says="3") is first
    assert talk.chat(*begun, user("Sure?"), model("3"), user("3?"), says="3") is second


def test_while_an_answer_is_sampled_its_line_is_not_gone_on_from() -> None:
    talk = Talk()
    first = talk.chat(user("Count."), says="1")
    turns = (user("Count."), model("1"), user("And then?"))
    asked = [talk.recording.chat(turns, None) for _ in range(2)]  # as n: 2 asks
    assert asked[0] is first
    assert asked[1] is not first
    assert shown(asked[1]) == shown(first)
    for line in asked:
        talk.answered(line, "2", messages=turns)
    assert talk.chat(*turns, model("2"), user("Sure?"), says="3") is first  # of two that fit, one


def test_where_earlier_turns_are_shown_otherwise_than_sampled_every_request_is_its_own_line() -> None:
    talk = Talk(FORGETFUL)
    thought = "<think>3?</think>1"
    first = talk.chat(user("Count."), says=thought)
    second = talk.chat(user("Count."), model(thought), user("And then?"), says="2")
    assert second is not first
    assert "think" in shown(first)
    assert "think" not in shown(second)  # the model reads what its template shows, and is trained on what it read


def test_a_tools_result_can_follow_and_another_answer_of_the_model_cannot() -> None:
    talk = Talk()
    first = talk.chat(user("Look."), says="look")
    assert talk.chat(user("Look."), model("look"), tool("18"), user("And then?"), says="3") is first
    said = (user("Look."), model("look"), tool("18"), user("And then?"), model("3"))
    assert talk.chat(*said, user("Sure?"), model("1"), user("18"), says="2") is not first


# -- texts and token ids -------------------------------------------------------------------------------------------


def test_a_text_that_goes_on_from_its_answer_is_one_line_and_its_new_part_is_read() -> None:
    talk = Talk()
    first = talk.text("Count to", says=" 3.")
    ids = list(first.ids)
    assert talk.text("Count to 3. And then?", says=" 1") is first
    assert first.ids[: len(ids)] == ids  # what was sampled is not encoded again
    assert first.loss_mask[: len(ids) - len(first.prompt_ids)] == [True] * (len(ids) - len(first.prompt_ids))
    heard = [token for token, mask in zip(first.token_ids, first.loss_mask, strict=True) if not mask]
    assert TOKENIZER.decode(heard) == " And then?"
    assert talk.text("Count to 2.", says=" 1") is not first


def test_token_ids_go_on_where_all_ids_of_a_line_are_their_beginning() -> None:
    talk = Talk()
    first = talk.text([5, 6, 7], says="1")
    longer = [*first.ids, 8, 9]
    assert talk.text(longer, says="2") is first
    assert first.ids[: len(longer)] == longer
    assert talk.text([*longer[:-1], 7], says="2") is not first
    assert talk.text([5, 6], says="2") is not first


def test_a_text_does_not_go_on_from_a_conversation() -> None:
    talk = Talk()
    first = talk.chat(user("Count."), says="1")
    assert talk.text([*first.ids, 9], says="2") is not first


# -- sequences -----------------------------------------------------------------------------------------------------


def sequence() -> TokenSequence:
    made = TokenSequence()
    made.say(Branch(token_ids=[1, 2], logprobs=[-1.0, -2.0], weight_versions=[WeightSpan(version=3, start=0, end=2)]))
    made.hear([3, 4, 5])
    made.say(
        Branch(
            token_ids=[6, 7],
            logprobs=[-3.0, -4.0],
            weight_versions=[WeightSpan(version=3, start=0, end=1), WeightSpan(version=4, start=1, end=2)],
        )
    )
    return made


def test_a_branch_has_its_own_tokens_behind_those_that_go_in_front() -> None:
    made = sequence()
    made.finish_reason = "stop"
    branch = made.branch(FORM, Score(value=1.0), text_ids=made.last_said, before=[8, 9])
    assert branch.token_ids == [8, 9, 1, 2, 3, 4, 5, 6, 7]
    assert branch.loss_mask == [False, False, True, True, False, False, False, True, True]
    assert branch.logprobs == [0.0, 0.0, -1.0, -2.0, 0.0, 0.0, 0.0, -3.0, -4.0]
    assert [(each.version, each.start, each.end) for each in branch.weight_versions] == [
        (3, 2, 4),
        (3, 7, 8),
        (4, 8, 9),
    ]
    assert branch.text == TOKENIZER.decode([6, 7], skip_special_tokens=True)
    assert (branch.finish_reason, branch.num_sampled, made.turns) == ("stop", 4, 2)
    assert made.token_ids == [1, 2, 3, 4, 5, 6, 7]  # a group may make it again behind another prompt


def test_what_was_read_in_vain_is_taken_back_and_what_was_said_stays() -> None:
    made, whole = sequence(), sequence()
    made.hear([8] * 1000)
    made_line = Line(prompt_ids=[0], token_ids=made.token_ids, loss_mask=made.loss_mask, logprobs=made.logprobs)
    for _ in range(2):
        made_line.take_back()
    assert (made_line.token_ids, made_line.loss_mask, made_line.logprobs) == (
        whole.token_ids,
        whole.loss_mask,
        whole.logprobs,
    )
    unanswered = Line(prompt_ids=[0])
    unanswered.hear([1, 2])
    unanswered.take_back()
    assert unanswered.ids == [0]


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([[1, 2, 3]], [1, 2, 3]),
        ([[1, 2, 3], [1, 2, 4, 5]], [1, 2]),
        ([[1, 2, 3], [1, 2]], [1, 2]),
        ([[1, 2], [3, 4]], []),
        ([], [7, 8]),
    ],
)
def test_the_prompt_of_a_group_is_what_all_its_lines_begin_with(prompts: list[list[int]], shared: list[int]) -> None:
    assert list(shared_prompt([Line(prompt_ids=ids) for ids in prompts], [7, 8])) == shared

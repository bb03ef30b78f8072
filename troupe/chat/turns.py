"""What stands between two answers of the model: an environment's turn or tools' results, in the model's template."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Sequence
from typing import Literal

from troupe.chat.form import ASKED, CALLING, PLAIN, PROBE, TOLD, AnyTokenizer, ChatForm, form_of, without_overlap
from troupe.errors import DataError
from troupe.records import Message, Sample, ToolCall

Role = Literal["user", "tool"]
ROLES: tuple[Role, ...] = ("user", "tool")


class TurnEncoder:
    """Token ids of an environment's turns, so that a game grows as one sequence: what the model sampled stays as it is,
    and only what follows is encoded."""

    def __init__(self, reader: AnyTokenizer | ChatForm, *, lenient: bool = False) -> None:
        """Choose whose turn an environment's is: the user's, or a tool's where the template then keeps thoughts.

        Raises DataError where neither leaves the model's earlier turns as they were, unless it is `lenient`.
        """
        self._form = form_of(reader)
        if self._form.template is None:
            raise DataError(
                "an environment answers in turns, but the tokenizer has no chat template; use an instruction-tuned "
                "model"
            )
        self.kept = [role for role in ROLES if all(self._keeps(probe, role) for probe in self._probes())]
        """The roles whose turns leave the model's earlier ones as they were."""
        if not self.kept and not lenient:
            raise DataError(
                "the tokenizer's chat template shows an assistant's turn differently once a user's or a tool's turn "
                "follows (it drops reasoning, say), so that the turns of a game cannot grow one sequence; use a model "
                "whose template keeps earlier turns as they were, or a template of your own (model.chat_template)"
            )
        self.role: Role = next(iter(self.kept), "user")
        self._encoded = functools.lru_cache(maxsize=4096)(self._encode)  # games meet the same boards again and again
        self._encoded_turns = functools.lru_cache(maxsize=4096)(self._encode_turns)

    def after_answer(self, last_token: int, observation: str) -> list[int]:
        """Return what follows an answer that ended with `last_token`, up to where the model's next answer begins.

        It begins with the end of turn where the answer was cut off and has none of its own. Example, in ChatML:
        `<|im_end|>` is sampled, `\\n<|im_start|>user\\n...<|im_end|>\\n<|im_start|>assistant\\n` is returned.
        """
        return self._behind(last_token, self._encoded(observation))

    def after_turns(self, last_token: int, turns: Sequence[Message]) -> list[int]:
        """Return what follows an answer that any turns follow but the model's, as `after_answer`."""
        key = tuple((turn["role"], turn.get("name", ""), turn["content"] or "") for turn in turns)
        return self._behind(last_token, self._encoded_turns(key))

    def can_follow(self, roles: Sequence[str]) -> bool:
        """Return whether turns of these roles leave the model's earlier ones as they were sampled."""
        return "assistant" not in roles and all(self._follows(role) for role in dict.fromkeys(roles))

    def _follows(self, role: str) -> bool:
        return self.shows_results if role == "tool" else "user" in self.kept

    def _behind(self, last_token: int, ids: Sequence[int]) -> list[int]:
        """Return the ids behind the end of turn that was sampled; all, where the answer was cut off."""
        if last_token in self._form.stop_ids and last_token in ids[:4]:
            return list(ids[ids.index(last_token) + 1 :])
        return list(ids)

    def require_tools(self) -> None:
        """Raise DataError unless the template shows tools' results behind earlier turns that stay as they were."""
        if not self.shows_results:
            raise DataError(
                "the chat template does not show the results of tools behind the model's turn as it was; use a model "
                "that knows tools, or a template of your own (model.chat_template)"
            )

    @functools.cached_property
    def shows_results(self) -> bool:
        """Whether tools' results can follow a turn that stays as it was."""
        try:
            later = self._with_turns([("tool", "look", "18"), ("tool", "look", "19")])
            begun = self._form.render([ASKED, self._caller])
        except Exception:  # a template may raise whatever it likes at a role that it does not know
            return False
        kept = begun.partition(PROBE)[0] == later.partition(PROBE)[0]
        return kept and all(each in later.partition(PROBE)[2] for each in ("18", "19"))

    @functools.cached_property
    def _caller(self) -> Message:
        """The turn that stands in for the model's where results follow: a plain one, if the template takes that."""
        with contextlib.suppress(Exception):  # such as of Mistral's, which wants a call before each result
            if "18" in self._with_turns([("tool", "look", "18")], PLAIN):
                return PLAIN
        return CALLING

    def _with_turns(self, turns: Sequence[tuple[str, str, str]], caller: Message | None = None) -> str:
        """Return a conversation in which turns of (role, name, content) follow one of the model's."""
        results = [name for role, name, _ in turns if role == "tool"]
        said = caller or (self._caller if results else PLAIN)
        if "tool_calls" in said:
            said = {**said, "tool_calls": [_call(number, name) for number, name in enumerate(results)]}
        numbers = itertools.count()
        told: list[Message] = [
            {**TOLD, "name": name, "tool_call_id": f"call{next(numbers):05d}", "content": content}
            if role == "tool"
            else {"role": role, "content": content}
            for role, name, content in turns
        ]
        return self._form.render([ASKED, said, *told], generation=True)

    def _encode_turns(self, turns: tuple[tuple[str, str, str], ...]) -> tuple[int, ...]:
        form, results = self._form, sum(role == "tool" for role, _, _ in turns)
        calls = results if results and "tool_calls" in self._caller else 0
        # Calls that stand in say PROBE once each; their turn ends at the first end behind the last of them.
        behind = self._with_turns(turns).split(PROBE, calls or 1)[-1]
        if calls:
            ends = [behind.index(end) for end in (*form.ends.answer, *form.ends.earlier) if end in behind]
            behind = behind[min(ends, default=0) :]
        return tuple(form.marks.encode(behind))

    def opening(self, sample: Sample, observation: str | None) -> tuple[list[int], list[int]]:
        """Return (the prompt that the branches of a group share, what one of them begins with), where some of them
        begin with an observation: then the assistant's header is not the prompt's any more.
        """
        form, turns = self._form, [] if observation is None else [_user(observation)]
        asked = form.messages(sample)
        prompt = form.render(asked, tools=sample.tools)
        whole = form.render([*asked, *turns], generation=True, tools=sample.tools)
        shared, ids = form.marks.encode(prompt), form.marks.encode(whole)
        if ids[: len(shared)] != shared or not shared:
            raise DataError(
                f"{sample.sample_id}: the chat template shows the prompt differently once the environment's first turn "
                "follows; let reset return None and say it in the prompt"
            )
        return shared, ids[len(shared) :]

    def _encode(self, observation: str) -> tuple[int, ...]:
        shown = self._form.render([ASKED, PLAIN, self._turn(observation, self.role)], generation=True)
        return tuple(self._form.marks.encode(shown.rpartition(PROBE)[2]))

    def _turn(self, observation: str, role: Role) -> Message:
        return _user(observation) if role == "user" else {**TOLD, "content": observation}

    def _probes(self) -> list[Message]:
        """Return answers that must stay as they are: thoughts in tags, thoughts apart, and a plain one where the
        template does not begin with thoughts itself.
        """
        thoughts: list[Message] = [
            {**PLAIN, "content": f"<think>\nPerhaps.\n</think>\n\n{PROBE}"},
            {**PLAIN, "reasoning": "Perhaps."},
        ]
        begins = self._form.render([ASKED], generation=True).rstrip().endswith("<think>")
        return thoughts if begins else [PLAIN, *thoughts]

    def _keeps(self, answer: Message, role: Role) -> bool:
        """Return whether an answer is shown as it was sampled, or as the last turn, once an environment's follows; and
        with the end that is sampled.
        """
        form = self._form
        try:
            before = form.render([ASKED], generation=True)
            last = form.render([ASKED, answer])
            later = form.render([ASKED, answer, self._turn("18", role)], generation=True)
        except Exception:  # a template may raise whatever it likes at a role that it does not know
            return False
        shown, _, behind = later.partition(PROBE)
        sampled = before + without_overlap(before, str(answer["content"])).partition(PROBE)[0]
        marks = form.marks.split(behind)[1::2]
        ended = not form.ends.answer or form.ends.answer[0] in marks[:2]
        as_last = last.partition(PROBE)[0]
        if "reasoning" in answer:
            alike = shown == as_last
        else:
            alike = shown == sampled or (shown == as_last and ("Perhaps." in shown or answer == PLAIN))
        return "18" in behind and ended and alike


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _call(number: int, name: str) -> ToolCall:
    return {"id": f"call{number:05d}", "type": "function", "function": {"name": name, "arguments": {"at": PROBE}}}

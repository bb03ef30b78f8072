"""What stands between two answers of the model in a game: an environment's turn, in the model's own template."""

from __future__ import annotations

import functools
from typing import Literal

from troupe.chat.form import ASKED, PLAIN, PROBE, TOLD, AnyTokenizer, ChatForm, form_of, without_overlap
from troupe.errors import DataError
from troupe.records import Message, Sample

Role = Literal["user", "tool"]
ROLES: tuple[Role, ...] = ("user", "tool")


class TurnEncoder:
    """Token ids of an environment's turns, so that a game grows as one sequence: what the model sampled stays as it is,
    and only what follows is encoded."""

    def __init__(self, reader: AnyTokenizer | ChatForm) -> None:
        """Choose whose turn an environment's is: the user's, or a tool's where the template then keeps thoughts.

        Raises DataError where neither leaves the model's earlier turns as they were.
        """
        self._form = form_of(reader)
        if self._form.template is None:
            raise DataError(
                "an environment answers in turns, but the tokenizer has no chat template; use an instruction-tuned "
                "model"
            )
        kept = [role for role in ROLES if all(self._keeps(probe, role) for probe in self._probes())]
        if not kept:
            raise DataError(
                "the tokenizer's chat template shows an assistant's turn differently once a user's or a tool's turn "
                "follows (it drops reasoning, say), so that the turns of a game cannot grow one sequence; use a model "
                "whose template keeps earlier turns as they were, or a template of your own (model.chat_template)"
            )
        self.role: Role = kept[0]
        self._encoded = functools.lru_cache(maxsize=4096)(self._encode)  # games meet the same boards again and again

    def after_answer(self, last_token: int, observation: str) -> list[int]:
        """Return what follows an answer that ended with `last_token`, up to where the model's next answer begins.

        It begins with the end of turn where the answer was cut off and has none of its own. Example, in ChatML:
        `<|im_end|>` is sampled, `\\n<|im_start|>user\\n...<|im_end|>\\n<|im_start|>assistant\\n` is returned.
        """
        ids = self._encoded(observation)
        if last_token in self._form.stop_ids and last_token in ids[:4]:
            return list(ids[ids.index(last_token) + 1 :])
        return list(ids)

    def opening(self, sample: Sample, observation: str | None) -> tuple[list[int], list[int]]:
        """Return (the prompt that the branches of a group share, what one of them begins with), where some of them
        begin with an observation: then the assistant's header is not the prompt's any more.
        """
        assert not isinstance(sample.prompt, str)
        form, turns = self._form, [] if observation is None else [_user(observation)]
        prompt = form.render(sample.prompt, tools=sample.tools)
        whole = form.render([*sample.prompt, *turns], generation=True, tools=sample.tools)
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

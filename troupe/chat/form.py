"""How a model reads conversations: `ChatForm`, made of its tokenizer and the settings of its config section.

It renders conversations through the chat template (a prompt that is text becomes a user's turn, where the model is not
read raw), and knows at which tokens a turn ends. Training and generation both read what it gives.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from troupe.chat.marks import Marks
from troupe.chat.texts import turn_text
from troupe.errors import DataError
from troupe.records import Message, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from troupe.tokenizer import LightTokenizer

    AnyTokenizer: TypeAlias = PreTrainedTokenizerBase | LightTokenizer
else:
    AnyTokenizer = Any

log = logging.getLogger(__name__)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template of models made here."""
RECORD = "troupe_chat"
"""Key of tokenizer_config.json under which a model that was trained here keeps its `ChatSettings.record`."""
RAW: Mapping[str, Any] = {"text_prompts": "raw"}
"""The record of a model whose prompts of text are read as they are."""
PROBE = "qvx"
"""An answer that is looked for in what a template makes of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """The settings of a model's conversations in a config; docs/data.md has the meaning of each."""

    chat: Literal["auto", "template", "raw"] = "auto"
    template: str | None = None
    """A chat template in place of the tokenizer's own."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    system_turn: Literal["keep", "fold"] = "keep"


class ChatForm:
    """A model's conversation form."""

    def __init__(self, tokenizer: AnyTokenizer, settings: ChatSettings | None = None) -> None:
        settings = settings or ChatSettings()
        record = getattr(tokenizer, "init_kwargs", {}).get(RECORD) or {}
        self.tokenizer: Any = tokenizer
        self.marks = Marks(tokenizer)
        self.template: str | None = settings.template or tokenizer.chat_template
        self._kwargs = {**record.get("template_kwargs", {}), **settings.template_kwargs}
        self._fold = "fold" in (settings.system_turn, record.get("system_turn"))
        # Models made here before there was a record were trained on raw text.
        recorded = record.get("text_prompts") or ("raw" if tokenizer.chat_template == CHATML else "template")
        chosen = recorded if settings.chat == "auto" else settings.chat
        self.raw = chosen == "raw" or self.template is None
        """Whether a prompt that is text is read as it is."""

    @property
    def record(self) -> dict[str, Any]:
        """The settings that a checkpoint keeps, with the template where it is not the tokenizer's own."""
        own = self.template == self.tokenizer.chat_template
        return {
            **({} if own else {"template": self.template}),
            "text_prompts": "raw" if self.raw else "template",
            "template_kwargs": dict(self._kwargs),
            "system_turn": "fold" if self._fold else "keep",
            "stop_ids": list(self.stop_ids),
        }

    def described(self) -> str:
        """Return in a sentence how prompts of text are read."""
        ends = ", ".join(f"{self.tokenizer.decode([each])} {each}" for each in self.stop_ids) or "none"
        how = "as it is" if self.raw else "as a user's turn, through the chat template (raw: model.chat=raw)"
        return f"a prompt that is text is read {how}; an answer ends at {ends}"

    # -- prompts -------------------------------------------------------------------------------------------------

    def prompt(self, sample: Sample) -> list[int]:
        """Return token ids of the sample's prompt, ready for the model to continue."""
        if isinstance(sample.prompt, str) and self.reads_raw(sample):
            ids = self._raw_ids(sample.prompt)
        else:
            ids = self.marks.encode(self.prompt_text(sample))
        if not ids:
            raise DataError(f"{sample.sample_id} has an empty prompt; the model needs at least one token to continue")
        return ids

    def prompt_text(self, sample: Sample) -> str:
        """Return the prompt as the template shows it, up to where the model goes on."""
        with named(sample):
            messages = self.messages(sample)
            if messages[-1]["role"] != "assistant":
                text = self.render(messages, generation=True, tools=sample.tools)
                self.require_shown(text, sample.tools or [], messages)
                return text
            return self._begun(messages, sample.tools)

    def reads_raw(self, sample: Sample) -> bool:
        """Return whether the prompt is text that no template is put around."""
        if not isinstance(sample.prompt, str):
            return False
        if self.raw:
            return True
        begins = self.marks.split(sample.prompt.lstrip())
        templated = len(begins) > 1 and not begins[0]
        if templated:
            say_once(f"prompts such as {sample.sample_id} begin with {begins[1]}: they are templated already")
        return templated

    def messages(self, sample: Sample) -> list[Message]:
        """Return the prompt's turns; text is the user's."""
        if self.template is None:
            raise DataError(
                "it is a conversation, but the tokenizer has no chat template; use an instruction-tuned model, a "
                "template of your own (model.chat_template), or a data set whose prompts are plain text"
            )
        if isinstance(sample.prompt, str):
            return [{"role": "user", "content": sample.prompt}]
        return list(sample.prompt)

    def _raw_ids(self, text: str) -> list[int]:
        """Encode text that nothing is put around: one first token, and none of the end tokens that some add."""
        ids = list(self.tokenizer(text)["input_ids"])
        bos, eos = (getattr(self.tokenizer, name, None) for name in ("bos_token", "eos_token"))
        if bos and text.startswith(bos) and len(ids) > 1 and ids[0] == ids[1] == self.marks.ids.get(bos):
            say_once(f"prompts begin with {bos} themselves, so the tokenizer's own is left out")
            ids = ids[1:]
        if eos and ids and ids[-1] == self.tokenizer.eos_token_id and not text.endswith(eos):
            say_once(f"the tokenizer puts {eos} behind every text; it is left out, since the model goes on there")
            ids = ids[:-1]
        return ids

    def _begun(self, messages: Sequence[Message], tools: Any) -> str:
        """Return a prompt that ends with the beginning of the model's turn."""
        begun, asked = messages[-1]["content"] or "", messages[:-1]
        text = self.render(asked, generation=True, tools=tools)
        shown = self.render(messages, tools=tools)
        place = shown.rfind(begun.strip())
        written = shown[len(text) : place] if shown.startswith(text) and place >= len(text) else ""
        # Whoever begins an answer has begun its thoughts, too; a block of none would end them.
        return text + ("" if "</think>" in written else written) + without_overlap(text, begun)

    def require_shown(self, text: str, tools: Sequence[Any], messages: Sequence[Message]) -> None:
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        for what, entries, shown in (("tools", tools, True), ("calls of tools", calls, self._call_shape is not None)):
            names = [str(entry.get("function", entry).get("name")) for entry in entries]
            lost = [name for name in names if name not in text or not shown]
            if lost:
                raise DataError(
                    f"the chat template does not show its {what} ({lost[0]}), so the model would never see them; use a "
                    f"model that knows tools, a template of your own (model.chat_template), or data without {what}"
                )

    # -- rendering -----------------------------------------------------------------------------------------------

    def render(
        self,
        messages: Sequence[Message],
        *,
        generation: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> str:
        """Return the template's text, with special tokens of other texts hidden as `Marks` hides them."""
        if any("tool_calls" in turn for turn in messages) and self._call_shape is None:
            self.require_shown("", [], messages)  # such a template mostly fails with words of its own
        turns = _folded(messages) if self._fold else messages
        return self._template_text(
            [self._for_template(turn, parts=self._in_parts) for turn in turns],
            generation=generation,
            tools=tools,
            **settings,
        )

    def _template_text(
        self, turns: Sequence[Mapping[str, Any]], *, generation: bool, tools: Any = None, **settings: Any
    ) -> str:
        own: dict[str, Any] = {} if self.template == self.tokenizer.chat_template else {"chat_template": self.template}
        return str(
            self.tokenizer.apply_chat_template(
                list(turns),
                add_generation_prompt=generation,
                tokenize=False,
                **({"tools": self.marks.hide(list(tools))} if tools else {}),
                **own,
                **{**self._kwargs, **settings},
            )
        )

    def _for_template(self, turn: Message, *, parts: bool) -> dict[str, Any]:
        """Return a turn as templates read it: thoughts under all their names, foreign special tokens hidden."""
        shown: dict[str, Any] = dict(turn)
        if turn["role"] != "assistant":
            shown = self.marks.hide(shown)
        if "reasoning" in shown:
            shown["reasoning_content"] = shown["thinking"] = shown["reasoning"]
        if "tool_calls" in turn:
            shown |= (self._call_shape or CallShape(None, False)).shaped(turn)
        if shown["content"] is ABSENT:
            del shown["content"]
        if parts and isinstance(shown.get("content"), str):
            shown["content"] = [{"type": "text", "text": shown["content"]}]
        return shown

    @cached_property
    def _call_shape(self) -> CallShape | None:
        """The first shape of a call that the template shows; None where it shows none."""
        shapes = [CallShape(content, text) for text in (False, True) for content in (None, "", ABSENT)]
        for shape in shapes:
            with contextlib.suppress(Exception):  # a template may raise whatever it likes at another shape
                turn = {name: each for name, each in {**CALLING, **shape.shaped(CALLING)}.items() if each is not ABSENT}
                shown = self._template_text([ASKED, turn], generation=False, tools=[TOOL])
                if PROBE in shown and "None" not in shown:
                    return shape
        return None

    @cached_property
    def _in_parts(self) -> bool:
        """Whether the template shows content only as a list of parts, as those of models that see images do."""
        turn: Message = {"role": "user", "content": PROBE}
        for parts in (False, True):
            with contextlib.suppress(Exception):  # a template may raise whatever it likes at another shape
                if PROBE in self._template_text([self._for_template(turn, parts=parts)], generation=True):
                    return parts
        return False

    # -- the ends of a turn --------------------------------------------------------------------------------------

    @cached_property
    def end_id(self) -> int | None:
        """The token that ends an answer and is trained: the template's where there is one, else the tokenizer's."""
        own = None if self.template is None else next(iter(self.ends.answer), None)
        return self.tokenizer.eos_token_id if own is None else self.marks.ids[own]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token at which an answer ends while it is sampled."""
        own = () if self.template is None else self.ends.answer
        ids = [self.marks.ids[end] for end in own]
        return tuple(dict.fromkeys(each for each in (*ids, self.tokenizer.eos_token_id) if each is not None))

    @cached_property
    def ends(self) -> Ends:
        """The template's ends of turns."""
        return find_ends(self)

    def text_ids(self, text: str) -> list[int]:
        """Return token ids of the model's own words."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


ABSENT = object()


@dataclass(frozen=True, slots=True)
class CallShape:
    """The shape of a turn that calls tools: what stands for no content, and arguments as a mapping or as JSON."""

    no_content: Any
    arguments_as_text: bool

    def shaped(self, turn: Message) -> dict[str, Any]:
        """Return the fields of the turn that have another shape."""
        content = turn["content"] or self.no_content
        calls: list[Any] = list(turn["tool_calls"])
        if self.arguments_as_text:
            calls = [
                {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
                for call in calls
            ]
        return {"tool_calls": calls, "content": content}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Special tokens at which the turns of an assistant end. Example: gpt-oss, `<|return|>`, `<|call|>`; `<|end|>`."""

    answer: tuple[str, ...]
    """Of a turn that nothing follows yet, that of a plain answer first."""
    earlier: tuple[str, ...]
    """Of a turn that others follow, where they are different."""


ASKED: Message = {"role": "user", "content": "Begin."}
PLAIN: Message = {"role": "assistant", "content": PROBE}
CALLING: Message = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"at": PROBE}}}],
}
TOLD: Message = {"role": "tool", "name": "look", "tool_call_id": "call00001", "content": "18"}
TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at something.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string", "description": "What to look at."}}},
    },
}


def find_ends(form: ChatForm) -> Ends:
    """Find the ends that a template writes, by rendering probes."""
    plain = _marks_behind(form, [ASKED, PLAIN])
    followed = _marks_behind(form, [ASKED, PLAIN, ASKED])
    if not plain:  # such a template ends a turn by beginning another
        answer = [*followed[:1], *_marks_behind(form, [ASKED, PLAIN, TOLD])[:1]]
        return Ends(answer=tuple(dict.fromkeys(answer)), earlier=())
    # Llama 3.1 has another end behind calls of tools that it knows by heart.
    kinds: list[dict[str, Any]] = [{}, {"builtin_tools": []}]
    called = [_tail(form, [ASKED, CALLING], tools=[TOOL], **kind) for kind in kinds]
    last = [mark for tail in called for mark in form.marks.split(tail)[1::2][-1:]]
    answer = list(dict.fromkeys([plain[-1], *last]))
    earlier = [] if followed[: len(plain)] == plain else followed[:1]
    return Ends(answer=tuple(answer), earlier=tuple(each for each in earlier if each not in answer))


def _marks_behind(form: ChatForm, messages: Sequence[Message]) -> list[str]:
    """Return the marks that stand directly behind the probe, with nothing between them."""
    pieces = form.marks.split(_tail(form, messages))
    found: list[str] = []
    for text, mark in zip(pieces[::2], pieces[1::2], strict=False):
        if text.strip() or (text and found):
            break
        found.append(mark)
    return found


def _tail(form: ChatForm, messages: Sequence[Message], **options: Any) -> str:
    """Return what the template writes behind the probe."""
    try:
        shown = form.render(messages, **options)
    except Exception as error:  # a template may raise whatever it likes at a turn that it does not know
        log.debug("the chat template refuses a probe: %s", error)
        return ""
    return shown.rpartition(PROBE)[2] if PROBE in shown else ""


def without_overlap(before: str, text: str) -> str:
    """Return the text without a beginning that stands at the end of `before` already.

    >>> without_overlap("assistant: <think>\\n", "<think>\\nPerhaps.")
    'Perhaps.'
    """
    tail = before[-200:]
    return next((text[size:] for size in range(min(len(tail), len(text)), 0, -1) if tail.endswith(text[:size])), text)


def _folded(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages with a system turn as the beginning of the user's."""
    if len(messages) < 2 or messages[0]["role"] not in ("system", "developer") or messages[1]["role"] != "user":
        return messages
    content = f"{messages[0]['content']}\n\n{turn_text(messages[1])}"
    return [{**messages[1], "content": content}, *messages[2:]]


@contextlib.contextmanager
def named(sample: Sample) -> Iterator[None]:
    """Turn whatever a template raises into a sentence that names the sample."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{sample.sample_id}: {error}") from None
    except Exception as error:  # a template may raise whatever it likes
        raise DataError(
            f"{sample.sample_id}: the chat template refuses its turns ({_roles(sample)}): {error}; mend the sample, "
            "fold the system turn into the user's with model.system_turn=fold, or give a template of your own with "
            "model.chat_template"
        ) from None


def _roles(sample: Sample) -> str:
    return "user" if isinstance(sample.prompt, str) else ", ".join(turn["role"] for turn in sample.prompt)


@functools.cache
def say_once(sentence: str) -> None:
    log.warning("%s; this is said once", sentence)


# -- with the settings that a tokenizer has by itself ------------------------------------------------------------


def form_of(reader: AnyTokenizer | ChatForm) -> ChatForm:
    """Return a conversation form; a tokenizer's with its own template and record."""
    return reader if isinstance(reader, ChatForm) else ChatForm(reader)


def encode_prompt(reader: AnyTokenizer | ChatForm, sample: Sample) -> list[int]:
    """Return token ids of the sample's prompt, ready for the model to continue."""
    return form_of(reader).prompt(sample)


def encode_answer(reader: AnyTokenizer | ChatForm, text: str) -> list[int]:
    """Return token ids of an answer as a model would have sampled it: the text and its end."""
    form = form_of(reader)
    return [*form.text_ids(text), *([] if form.end_id is None else [form.end_id])]

"""Rows of one's own as samples, whatever they were read from: the config says which field is what, or a shape does.

A prompt is a string or a list of messages. Messages that end with an assistant's turn are a conversation with its
answer: that turn is taken off, so that the answer is never part of the prompt, unless the config says that the model
goes on from it. Two whole dialogues are split where they part. Other fields travel in `fields`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from troupe.chat import answer_text, prompt_text
from troupe.config.own_data import MappedConfig
from troupe.data.dataset import DataSet, Dropped, behind_system_prompt, conversation, hold_out
from troupe.data.filters import left_out
from troupe.data.lines import Row, field_of, text_of
from troupe.data.messages import answer_of, as_answer, is_empty, messages_of, part, tools_of
from troupe.data.shapes import HH_TURN, SHAPES, shape_of
from troupe.errors import DataError
from troupe.records import Answer, Message, Sample

log = logging.getLogger(__name__)

Named = tuple[str, str, Row | Sample]
"""The id of a row's sample, its place for errors, and the row; a sample stays as it is."""

SHORTEST_ECHO = 20
"""Characters of an answer from which on its occurrence in the prompt is no accident."""


def load_mapped(config: MappedConfig, train: Iterable[Named], heldout: Iterable[Named] | None, source: str) -> DataSet:
    """Return the data set of these rows; without a held-out side some of the rows are held out.

    `source` is the file, the hub's name or the function, for people.
    """
    name, dropped = config.type, Counter[str]()
    mapping = _Mapping(config, dropped)
    whole = DataSet(name=name, train=mapping.samples(train), heldout=(), own_ids=config.id_field is not None)
    held = None if heldout is None else mapping.samples(heldout)
    mapping.tell(source, [*whole.train, *(held or ())])
    whole = dataclasses.replace(whole, dropped=dropped)
    if held is not None:
        return dataclasses.replace(whole, heldout=held)
    train_rows, held = hold_out(whole.train, config.num_heldout, f"{name}/{config.seed}", whole.key)
    if held and not train_rows:
        raise DataError(
            f"{source} has {len(held)} samples, too few different ones to hold out {config.num_heldout or 1} and train "
            "on the others; lower data.num_heldout, or name a held-out side (data.heldout_path, heldout_split or "
            "heldout_args)"
        )
    return dataclasses.replace(whole, train=train_rows, heldout=held, from_one_file=True)


class _Mapping:
    """A config applied to rows, the first of which shows their shape, and what is noted on the way."""

    def __init__(self, config: MappedConfig, dropped: Counter[str]) -> None:
        self._given, self._dropped = config, dropped
        self._config: MappedConfig | None = None
        self._unread: dict[str, None] = {}
        self._noted: dict[str, list[str]] = {}

    def samples(self, rows: Iterable[Named]) -> list[Sample]:
        made = []
        for sample_id, where, row in rows:
            sample = row if isinstance(row, Sample) else self._made(sample_id, where, row)
            if isinstance(sample, Dropped):
                self._dropped[sample.reason] += 1
            else:
                made.append(sample)
        return made

    def _made(self, sample_id: str, where: str, given: Row) -> Sample | Dropped:
        reason = left_out(given, self._given.filters, where)
        if reason is not None:
            return Dropped(reason)
        config = self._settings(given)
        row = SHAPES[config.format].rewrite(given, where)
        return row if isinstance(row, Dropped) else self._sample(sample_id, where, row, config)

    def tell(self, source: str, samples: Sequence[Sample]) -> None:
        """Log how the rows were read, which columns no setting names, and what looks wrong with them."""
        if self._config is not None and self._given.format == "auto" and self._config.format != "fields":
            log.info("%s: read as %s (data.format=%s)", source, SHAPES[self._config.format].title, self._config.format)
        if self._unread:
            log.info(
                "%s: no setting names the columns %s; they travel in sample.fields, for rewards and environments",
                source,
                ", ".join(self._unread),
            )
        echoes = [sample.sample_id for sample in samples if _contains_its_answer(sample)]
        if echoes:
            self._noted["the prompt contains its own answer, which a model would learn to copy"] = echoes
        for what, places in self._noted.items():
            log.warning("%s: in %d of %d rows %s; %s the first", source, len(places), len(samples), what, places[0])

    def _settings(self, row: Row) -> MappedConfig:
        """Return the config with the fields of the shape that the first row shows."""
        if self._config is None:
            name = shape_of(self._given, row)
            fields = dict(SHAPES[name].fields)
            if "demonstration" in row:
                fields.pop("demonstration_field", None)
            self._config = self._given.model_copy(update={"format": name, **fields})
        return self._config

    def _sample(self, sample_id: str, where: str, row: Row, config: MappedConfig) -> Sample:
        answers = None
        if config.chosen_field is None:
            prompt, answer = _prompt(row, where, config)
        else:
            prompt, answers = _pair(row, where, config)
            answer = None
        self._note_system_turns(prompt, where)
        gold = answer["content"] if answer is not None else None
        if config.gold_field is not None:
            gold = answer_text(answer_of(row, config.gold_field, where))
        demonstration = _demonstration(row, where, config, answers) or (as_answer([answer]) if answer else gold)
        if row.get("demonstration", "") is None and config.demonstration_field is None:
            demonstration = None
        fields = self._others(row, config) | _preference(row, where, config, answers)
        return Sample(
            sample_id=sample_id if config.id_field is None else text_of(row, config.id_field, where),
            prompt=prompt,
            gold=gold,
            fields=fields if not demonstration else {**fields, "demonstration": demonstration},
            tools=tools_of(row, config.tools_field, where),
        )

    def _others(self, row: Row, config: MappedConfig) -> Row:
        """Return the columns that no setting names, and remember what they are called."""
        named = {getattr(config, name) for name in type(config).model_fields if name.endswith("_field")}
        others = {name: value for name, value in row.items() if name not in {*named, "demonstration"}}
        filtered = {bounds.field for bounds in config.filters}
        self._unread |= dict.fromkeys(name for name in others if name not in {*filtered, "answers", "ranks", "margin"})
        return others

    def _note_system_turns(self, prompt: str | Sequence[Message], where: str) -> None:
        roles = [] if isinstance(prompt, str) else [turn["role"] for turn in prompt]
        if any(role == "system" for role in roles[1:]):
            self._noted.setdefault("a system turn is not the first, which some chat templates refuse", []).append(where)
        if roles == ["system"]:
            self._noted.setdefault("a system turn is the whole prompt; no user asks anything", []).append(where)


def _demonstration(row: Row, where: str, config: MappedConfig, answers: Sequence[Answer] | None) -> Answer | None:
    """Return what a column holds to imitate; of a pair all turns behind the split."""
    if config.demonstration_field is None:
        return answer_of(row, "demonstration", where) if row.get("demonstration") is not None else None
    for side, answer in zip((config.chosen_field, config.rejected_field), answers or (), strict=False):
        if side == config.demonstration_field:
            return answer
    return answer_of(row, config.demonstration_field, where)


def _prompt(row: Row, where: str, config: MappedConfig) -> tuple[str | list[Message], Message | None]:
    """Return (prompt, the answer that ended its messages or None)."""
    name = config.prompt_field
    value = field_of(row, name, where)
    if isinstance(value, str) and value.strip():
        return behind_system_prompt(value, config), None
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: field {name!r} must be a text or a list of messages, not empty, got {value!r:.60}")
    messages = messages_of(row, name, where)
    prompt, answer = (messages, None) if config.continue_final_message else part(messages)
    if answer is not None and config.continue_final_message is None and config.gold_field is not None:
        raise DataError(
            f"{where}: {name!r} ends with an assistant's turn, and gold_field names another answer; set "
            "data.continue_final_message=true if the model is to go on from that turn, or =false if it is a "
            "demonstration and no part of the prompt"
        )
    if answer is not None and is_empty(answer):
        raise DataError(
            f"{where}: the messages in {name!r} must end with an assistant's turn that is not empty, or with another's"
        )
    if not any(turn["role"] != "assistant" for turn in prompt):
        raise DataError(f"{where}: field {name!r} holds an assistant's turn alone; there is no prompt")
    return behind_system_prompt(prompt, config), answer


# -- pairs ---------------------------------------------------------------------------------------------------------


def _pair(row: Row, where: str, config: MappedConfig) -> tuple[str | list[Message], list[Answer]]:
    """Return (prompt, the better and the worse answer): of whole dialogues what follows the turns that they share."""
    names = (str(config.chosen_field), str(config.rejected_field))
    given = field_of(row, config.prompt_field, where) if config.prompt_field in row else None
    if isinstance(given, str) and not any(isinstance(row.get(name), list) for name in names):
        return _prompt(row, where, config)[0], [text_of(row, name, where) for name in names]
    asked = _asked(row, given, where, config)
    better, worse = (_dialogue(row, name, where, asked) for name in names)
    shared = _shared(better, worse)
    if better == worse:  # left out later, as every pair of equal answers; its last turn is then the answer
        shared -= 1
    for name, turns in zip(names, (better, worse), strict=True):
        _check_answer(turns, shared, name, where)
    prompt = behind_system_prompt(better[:shared], config)
    return prompt, [as_answer(turns[shared:]) for turns in (better, worse)]


def _asked(row: Row, given: Any, where: str, config: MappedConfig) -> list[Message]:
    """Return the turns of the prompt column, none where there is no such column."""
    if given is None:
        return []
    return conversation(given) if isinstance(given, str) else messages_of(row, config.prompt_field, where)


def _dialogue(row: Row, name: str, where: str, asked: list[Message]) -> list[Message]:
    """Return one side of a pair from its first turn on, whether the row has it whole or the answer alone."""
    if not isinstance(row.get(name), list):
        return [*asked, {"role": "assistant", "content": text_of(row, name, where)}]
    turns = messages_of(row, name, where)
    if turns[0]["role"] == "assistant":
        return [*asked, *turns]
    has_system = asked[:1] and asked[0]["role"] == "system" and turns[0]["role"] != "system"
    return [asked[0], *turns] if has_system else turns


def _shared(better: Sequence[Message], worse: Sequence[Message]) -> int:
    """Count the turns with which both begin."""
    for number, (one, other) in enumerate(zip(better, worse, strict=False)):
        if one != other:
            return number
    return min(len(better), len(worse))


def _check_answer(turns: Sequence[Message], shared: int, name: str, where: str) -> None:
    if turns[-1]["role"] != "assistant" or is_empty(turns[-1]):
        raise DataError(f"{where}: the messages in {name!r} must end with an assistant's turn that is not empty")
    if shared == 0:
        raise DataError(f"{where}: the two sides share no turn, so there is no prompt; look at {name!r}")
    if shared == len(turns):
        raise DataError(f"{where}: {name!r} ends where the other side goes on; leave the row out")
    if turns[shared]["role"] != "assistant":
        raise DataError(
            f"{where}: the two sides part at turn {shared + 1} of {name!r}, which is not the assistant's; only answers "
            "to the same turns can be compared"
        )


def _preference(row: Row, where: str, config: MappedConfig, pair: list[Answer] | None) -> dict[str, Any]:
    """Return answers, ranks and margin; `troupe.data.preference_pairs` checks them."""
    fields: dict[str, Any] = {} if pair is None else {"answers": pair}
    named = {"answers": config.answers_field, "ranks": config.ranks_field, "margin": config.margin_field}
    return fields | {name: field_of(row, column, where) for name, column in named.items() if column is not None}


def _contains_its_answer(sample: Sample) -> bool:
    """Return whether the prompt holds the answer, or is a dialogue of hh-rlhf with the answer in it."""
    prompt = prompt_text(sample)
    if isinstance(sample.prompt, str) and HH_TURN.match(prompt):
        return HH_TURN.findall(prompt)[-1] == "Assistant" and not prompt.rstrip().endswith("Assistant:")
    answers = [sample.gold, *(sample.fields.get(name) for name in ("demonstration",))]
    return any(isinstance(text, str) and len(text) >= SHORTEST_ECHO and text.strip() in prompt for text in answers)

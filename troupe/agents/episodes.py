"""Agents as episodes: an unmodified program asks over an address, and every token that it was answered is trained.

Each conversation of an agent is a line (`troupe.agents.recording`), and each line a branch with the episode's score.
All branches of a sample are one group; its prompt is what their first requests have in common.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from troupe.actors.generator import Request, branch_seed
from troupe.actors.generators import Generators
from troupe.agents.address import Address
from troupe.agents.loop import Batch, EpisodeLoop, place_of, together
from troupe.agents.programs import SECTION, build_program
from troupe.agents.protocol import Ask, Choice, RequestRefused, message_of
from troupe.agents.recording import Line, Recording, shared_prompt
from troupe.agents.turn_taking import TurnTaking
from troupe.chat import AnyTokenizer, ChatForm, TurnEncoder, form_of
from troupe.config.agents import LABEL, AgentConfig
from troupe.engines.tool_calls import CallReader, MalformedCall
from troupe.errors import TroupeError
from troupe.records import Branch, Group, Sample, Score, ToolCall

log = logging.getLogger(__name__)


class AgentEpisodes:
    """Runs a config's agent against the generators; an `Answers`."""

    def __init__(
        self, config: AgentConfig, generators: Generators, reader: AnyTokenizer | ChatForm, *, max_length: int
    ) -> None:
        """Listen; `max_length` is the longest prompt and answer that the engines take, in tokens."""
        self.config, self.form = config, form_of(reader)
        self.turns = TurnEncoder(self.form, lenient=True)
        self.max_length = max_length
        self._program = build_program(config)
        self._address = Address(model=config.model, vocabulary=len(self.form.tokenizer))
        self._loop = EpisodeLoop(generators, self._play_group, section=SECTION, noun="episode", rules=config)
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._loop.run(self._address.start(), 30)
        if config.order == "free":
            log.info("episodes of %s go on by themselves, so a run of it does not repeat to the bit", config.title)

    def submit(
        self, requests: Sequence[Request], samples: Sequence[Sample], *, alone: bool = True
    ) -> list[Future[Group]]:
        """Start a batch; a request's branches are runs of the agent on its sample."""
        return self._loop.submit(requests, samples, alone=alone)

    def shutdown(self) -> None:
        """Stop listening; agents that still run are given up."""
        with contextlib.suppress(Exception):  # the loop may have ended with the process
            self._loop.run(self._address.stop(), 10)
        self._loop.shutdown()

    def read_calls(self, ask: Ask, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Return (text, calls) of an answer; one whose call cannot be read is text, as it is at other addresses."""
        if not ask.tools:
            return text, ()
        try:
            said, calls = CallReader(self.form.tokenizer, self.form.template, ask.tools).read(text)
        except MalformedCall:
            return text, ()
        return said, tuple(calls)

    async def _play_group(self, batch: Batch, index: int, turns: TurnTaking) -> Group:
        sample, request = batch.samples[index], batch.requests[index]
        episodes = [
            AgentEpisode(self, sample, replace(request, seed=request.seed + branch), player, turns)
            for branch, player in enumerate(batch.players[index])
        ]
        await together(self._run(batch, episode) for episode in episodes)
        prompt_ids = shared_prompt([line for each in episodes for line in each.lines], request.prompt_ids)
        branches = [branch for each in episodes for branch in each.branches(prompt_ids)]
        return Group(sample=sample, prompt_ids=prompt_ids, branches=branches)

    async def _run(self, batch: Batch, episode: AgentEpisode) -> None:
        """Run one episode to its end; what the agent does wrong costs this episode, what engines do wrong the step."""
        slots = self._slots if self.config.order == "free" else contextlib.nullcontext()
        token = ""
        try:
            async with slots:
                token = self._address.open(episode)
                episode.running = asyncio.current_task()
                async with asyncio.timeout(self.config.timeout_s):
                    result = await self._program(self._address.base_url, token, episode.sample)
                episode.end(result)
        except asyncio.CancelledError:
            if episode.engine_error is not None:
                raise episode.engine_error from None
            raise
        except Exception as raised:
            error = raised
            if isinstance(raised, TimeoutError) and str(raised) == "":
                error = TimeoutError(f"it took longer than agent.timeout_s ({self.config.timeout_s:g} s)")
            told = f"agent {self.config.title} failed: {place_of(error)} on sample {episode.sample.sample_id}"
            batch.count_failure(error, f"{told} after {episode.asked} requests")
            episode.fail(self.config.error_reward)
        finally:
            self._address.close(token)
            episode.turns.leave(episode.player)


class AgentEpisode:
    """One run of the agent: what it asked, was answered, and scored."""

    def __init__(self, owner: AgentEpisodes, sample: Sample, request: Request, player: int, turns: TurnTaking) -> None:
        self._owner, self.sample, self._request = owner, sample, request
        self.player, self.turns = player, turns
        self._recording = Recording(owner.form, owner.turns)
        self.asked = 0
        """Answers that it asked for."""
        self._reported: Any = None
        self.outcome: Score | None = None
        self.running: asyncio.Task[None] | None = None
        self.engine_error: TroupeError | None = None

    @property
    def lines(self) -> list[Line]:
        """The lines with an answer of the model, in the order of their last requests."""
        return sorted((line for line in self._recording.lines if line.turns), key=lambda line: line.asked)

    # -- while it runs -------------------------------------------------------------------------------------------

    async def answer(self, ask: Ask) -> tuple[list[Choice], int]:
        """Return the answers to a request, and the tokens of its prompt."""
        self._require_left(ask.count)
        lines = [self._line(ask) for _ in range(ask.count)]
        prompt_tokens = len(lines[0].ids)
        choices = await asyncio.gather(*(self._sample(ask, line) for line in lines))
        return list(choices), prompt_tokens

    def score(self, reward: Any) -> None:
        """Take the score that a process reports; RequestRefused where it is none."""
        try:
            score_of(reward)
        except ValueError as error:
            raise RequestRefused(str(error)) from None
        self._reported = reward

    def _line(self, ask: Ask) -> Line:
        try:
            if ask.kind == "text":
                return self._recording.complete(ask.prompt)
            return self._recording.chat(ask.messages, ask.tools)
        except TroupeError as error:  # what the template refuses
            raise RequestRefused(str(error)) from None

    async def _sample(self, ask: Ask, line: Line) -> Choice:
        try:
            branch = await self._ask(ask, line)
        except BaseException:
            line.take_back()  # it may be longer than the model reads, and nothing in it is trained
            raise
        finally:
            line.busy = False
        form, ids = self._owner.form, branch.token_ids
        said = ids[:-1] if ids and ids[-1] in form.stop_ids else ids
        text, calls = branch.text, tuple[ToolCall, ...]()
        if ask.tools:
            text, calls = self._owner.read_calls(ask, form.tokenizer.decode(said, skip_special_tokens=False))
        tokens = [form.tokenizer.decode([each]) for each in ids] if ask.logprobs else []
        choice = Choice(branch=branch, text=text, calls=calls, tokens=tokens)
        line.messages = [*ask.messages, message_of(choice)] if ask.kind == "chat" else ()
        line.text = ask.prompt + branch.text if ask.kind == "text" and isinstance(ask.prompt, str) else ""
        return choice

    async def _ask(self, ask: Ask, line: Line) -> Branch:
        room = self._owner.max_length - len(line.ids)
        if room < 1:
            raise RequestRefused(
                f"the conversation has {len(line.ids)} tokens, and this model reads {self._owner.max_length} "
                "(context_length_exceeded)"
            )
        self._require_left(1)
        limit = min(self._request.max_tokens, room, ask.max_tokens or room)
        request = replace(
            self._request,
            prompt_ids=line.ids,
            num_branches=1,
            max_tokens=limit,
            seed=branch_seed(self._request.seed, self.asked, self.sample.sample_id),
            stop=(*self._request.stop, *ask.stop),
        )
        self.asked += 1
        line.asked = self.asked
        try:
            branch = await self.turns.ask(self.player, request)
        except TroupeError as error:
            self.engine_error = error
            if self.running is not None:
                self.running.cancel()
            raise
        line.say(branch)
        line.finish_reason = branch.finish_reason
        return branch

    def _require_left(self, count: int) -> None:
        """Raise RequestRefused where the episode may not ask for so many answers more."""
        if self.asked + count > self._owner.config.max_requests:
            raise RequestRefused(
                f"the episode has had {self.asked} answers and asks for {count} more; it may have "
                f"{self._owner.config.max_requests} (agent.max_requests)",
                429,
            )

    # -- at its end ----------------------------------------------------------------------------------------------

    def end(self, result: Any) -> None:
        """Take what the agent returned; ValueError where that is no score, or nothing was asked."""
        if not self.lines:
            raise ValueError("it never asked the model")
        reward = self._reported if result is None else result
        if reward is None:
            raise ValueError("it ended without a score")
        value, parts = score_of(reward)
        named = {f"{LABEL}/{name}": part for name, part in parts.items()}
        self.outcome = Score(value=value, parts={LABEL: value, **named, **self._counts(failed=False)})

    def fail(self, reward: float) -> None:
        """End with the reward of an episode that failed."""
        self.outcome = Score(value=reward, parts={LABEL: reward, **self._counts(failed=True)})

    def branches(self, prompt_ids: Sequence[int]) -> list[Branch]:
        """Return a branch for each line, behind the group's prompt; of an episode without one a masked token."""
        assert self.outcome is not None
        form, lines = self._owner.form, self.lines
        if not lines:
            line = Line(prompt_ids=prompt_ids)
            line.hear(form.stop_ids[:1], "prompt")
            lines = [line]
        return [
            line.branch(form, self.outcome, text_ids=line.last_said, before=line.prompt_ids[len(prompt_ids) :])
            for line in lines
        ]

    def _counts(self, *, failed: bool) -> dict[str, float]:
        return {
            f"{LABEL}/requests": float(self.asked),
            f"{LABEL}/lines": float(len(self.lines)),
            f"{LABEL}/failed": float(failed),
        }


def score_of(reward: Any) -> tuple[float, Mapping[str, float]]:
    """Return (value, parts) of what an agent returns; ValueError where it is no score.

    >>> score_of(True), score_of({"reward": 0.5, "won": 1})
    ((1.0, {}), (0.5, {'won': 1.0}))
    """
    given = reward if isinstance(reward, Mapping) else {"reward": reward}
    if "reward" not in given:
        raise ValueError(f"a score that is a mapping needs 'reward', got {', '.join(map(str, given)) or 'nothing'}")
    for name, value in given.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} of a score must be a finite number, got {value!r:.40}")
    numbers = {str(name): float(value) for name, value in given.items()}
    return numbers.pop("reward"), numbers

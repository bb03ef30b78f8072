"""Games of the library TextArena for one player, and for two against an opponent that the config names.

A game is a function of its seed: the library draws from Python's global random numbers, so each game keeps a state of
its own. Games that would download word lists are refused unless these are there.
"""

from __future__ import annotations

import contextlib
import difflib
import random
from collections.abc import Callable, Iterator
from typing import Any

from troupe.environments.turn import Turn
from troupe.errors import ConfigError
from troupe.optional import optional
from troupe.records import Sample
from troupe.resolve import find

SECTION = "environment"
GAME, SEED = "game", "seed"
"""Fields of a sample whose prompt is the opening of the game that it names."""


class TextArena:
    """One game; the reward is the library's, at the end."""

    parts = ("num_moves", "invalid_move")

    def __init__(self, *, name: str, opponent: str | None = None, **settings: Any) -> None:
        """Make the game `name`; `opponent` is a function from what the other player reads to its move."""
        self._library = optional("textarena", "environment.type textarena")
        self._name, self._num_moves, self._player = name, 0, 0
        self._opponent: Callable[[str], str] | None = None
        if opponent is not None:
            self._opponent = find(opponent, {}, section=SECTION, noun="opponent", form="package.module:function")
        self._game = self._make(settings)
        self._random = random.Random(0).getstate()

    def reset(self, sample: Sample, seed: int) -> str | None:
        """Begin the game of the sample's seed, whose opening the prompt has, or another, and show its opening."""
        shown = sample.fields.get(GAME) == self._name
        text = self.begin(int(sample.fields[SEED]) if shown else seed)
        return None if shown else text

    def begin(self, seed: int) -> str:
        """Begin the game of a seed; return what the player reads first."""
        players = 1 if self._opponent is None else 2
        self._random = random.Random(seed).getstate()
        self._player = seed % players
        with self._own_random():
            try:
                self._game.reset(num_players=players, seed=seed % 2**32)
            except AssertionError as error:
                raise ConfigError(
                    f"environment: {self._name} cannot be played by {players} ({error}); games for two need "
                    "args.opponent, others than for one or two cannot be played here"
                ) from None
            done, text = self._until_own_turn(False)
        if done:
            raise ConfigError(f"environment: {self._name} ended before the model's first move")
        return text

    def step(self, answer: str) -> Turn:
        """Return what comes of the model's move, and of the opponent's."""
        move = answer if "[" in answer or "]" in answer else f"[{answer.strip()}]"  # as the library's own wrapper
        self._num_moves += 1
        with self._own_random():
            done, _ = self._game.step(move)
            done, text = self._until_own_turn(bool(done))
            if not done:
                return Turn(observation=text, parts=self._parts(invalid=False))
            rewards, info = self._game.close()
        own = (info or {}).get(self._player, {})
        reward = float((rewards or {}).get(self._player, 0.0))
        return Turn(done=True, reward=reward, parts=self._parts(invalid=bool(own.get("invalid_move"))))

    def _until_own_turn(self, done: bool) -> tuple[bool, str]:
        """Let the opponent move while it is its turn; return whether the game is over, and what the player reads."""
        while not done:
            player, seen = self._game.get_observation()
            action = self._library.ObservationType.PLAYER_ACTION
            text = "\n\n".join(
                str(message).strip() for sender, message, kind in seen if not (kind == action and sender == player)
            )
            if player == self._player or self._opponent is None:
                return False, text
            done, _ = self._game.step(self._opponent(text))
        return True, ""

    def _make(self, settings: dict[str, Any]) -> Any:
        known = self._library.envs.registration.ENV_REGISTRY
        if self._name not in known:
            near = difflib.get_close_matches(self._name, known, n=3)
            raise ConfigError(
                f"environment: TextArena has no game {self._name!r}; it has {', '.join(near) or 'others'}"
            )
        raw = f"{self._name}-raw"  # without the wrappers that repeat the whole game at every turn
        with without_downloads(self._name):
            return self._library.make(raw if raw in known else self._name, **settings)

    def _parts(self, *, invalid: bool) -> dict[str, float]:
        return {"num_moves": float(self._num_moves), "invalid_move": float(invalid)}

    @contextlib.contextmanager
    def _own_random(self) -> Iterator[None]:
        """Let the library draw from the numbers of this game."""
        others = random.getstate()
        random.setstate(self._random)
        try:
            yield
        finally:
            self._random = random.getstate()
            random.setstate(others)


@contextlib.contextmanager
def without_downloads(name: str) -> Iterator[None]:
    """Refuse a game that wants word lists of nltk that are not on this machine."""
    nltk = optional("nltk", f"TextArena's {name}")

    def there(wanted: str | list[str], *_: Any, **__: Any) -> bool:
        for each in [wanted] if isinstance(wanted, str) else wanted:
            if not any(_is_there(nltk, f"{kind}/{each}") for kind in ("corpora", "taggers")):
                raise ConfigError(
                    f"environment: {name} needs the word list {each} of nltk, and nothing is downloaded while a run "
                    f"goes on; fetch it once with `python -m nltk.downloader {each}`, or choose another game"
                )
        return True

    real, nltk.download = nltk.download, there
    try:
        yield
    finally:
        nltk.download = real


def _is_there(nltk: Any, path: str) -> bool:
    for each in (path, f"{path}.zip"):
        with contextlib.suppress(LookupError):
            nltk.data.find(each)
            return True
    return False

"""Episodes of several requests: when engines get them, how they are recorded, and the address that agents speak to.

`EpisodeLoop` runs the episodes of a batch side by side; an episode is a game (`troupe.training.episodes`) or an agent's
(`troupe.agents.episodes`).
"""

from typing import TYPE_CHECKING

from troupe.lazy import lazy_exports

if TYPE_CHECKING:
    from troupe.agents.programs import build_program as build_program

__getattr__ = lazy_exports(__name__, __file__)

"""Episodes of several requests: when engines get them, how they are recorded, and the address that agents speak to.

`EpisodeLoop` runs the episodes of a batch side by side; an episode is a game (`troupe.training.episodes`) or an agent's
(`troupe.agents.episodes`).
"""

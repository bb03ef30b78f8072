"""Who holds which weights: groups of workers, placement, the training engine, generators, weight sync, rollouts.

Every role is a plain worker class, one process per rank, and a small facade that the jobs hold.
"""

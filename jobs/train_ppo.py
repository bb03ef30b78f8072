"""PPO: the loop of jobs/train_grpo.py, with a critic as the baseline of every token.

python jobs/train_ppo.py [config.yaml ...] [section.field=value ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe.config.grpo import PPOConfig
from troupe.config.program import run_program
from troupe.jobs.train_grpo import rehearse, train

if __name__ == "__main__":
    run_program(train, PPOConfig, "jobs/train_ppo.py", rehearse=rehearse)

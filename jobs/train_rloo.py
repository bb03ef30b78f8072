"""RLOO: the GRPO job with a leave-one-out baseline, the KL in the reward, and the whole answer as one action.

python jobs/train_rloo.py [recipe.yaml ...] [section.field=value ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from troupe.config.grpo import RLOOConfig
from troupe.config.program import run_program
from troupe.jobs.train_grpo import rehearse, train

if __name__ == "__main__":
    run_program(train, RLOOConfig, "jobs/train_rloo.py", rehearse=rehearse)

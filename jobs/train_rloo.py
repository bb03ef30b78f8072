"""RLOO: the GRPO job with a leave-one-out baseline, the KL in the reward, and the whole answer as one action.

python jobs/train_rloo.py [recipe.yaml ...] [section.field=value ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.program import run_program
from core.rl_recipes import RLOOConfig
from jobs.train_grpo import rehearse, train

if __name__ == "__main__":
    run_program(train, RLOOConfig, "jobs/train_rloo.py", rehearse=rehearse)

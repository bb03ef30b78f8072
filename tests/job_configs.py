"""The recipe of every job that has one, by the job's name: what tests of all recipes go over."""

from __future__ import annotations

from troupe.config.evaluation import BenchmarkConfig, EvaluateConfig
from troupe.config.grpo import GRPOConfig, PPOConfig, RLOOConfig
from troupe.config.loader import Section
from troupe.config.serve import ServeConfig
from troupe.config.supervised import DPOConfig, RewardModelTrainingConfig, SFTConfig
from troupe.config.tools import ExportConfig, PipelineConfig, PrepareConfig
from troupe.jobs.distil import DistilConfig
from troupe.jobs.score import ScoreConfig

JOB_CONFIGS: dict[str, type[Section]] = {
    "train_grpo": GRPOConfig,
    "train_rloo": RLOOConfig,
    "train_ppo": PPOConfig,
    "train_sft": SFTConfig,
    "train_reward_model": RewardModelTrainingConfig,
    "train_dpo": DPOConfig,
    "compute_baseline": GRPOConfig,
    "evaluate": EvaluateConfig,
    "benchmark": BenchmarkConfig,
    "export": ExportConfig,
    "run_pipeline": PipelineConfig,
    "prepare_data": PrepareConfig,
    "serve": ServeConfig,
    "distil": DistilConfig,
    "score": ScoreConfig,
}

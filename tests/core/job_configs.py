"""The recipe of every job that has one, by the job's name: what tests of all recipes go over."""

from __future__ import annotations

from core.benchmark_recipes import BenchmarkConfig
from core.config import Section
from core.evaluate_recipes import EvaluateConfig
from core.export_recipes import ExportConfig
from core.pipeline_recipes import PipelineConfig
from core.prepare_recipes import PrepareConfig
from core.recipes import GRPOConfig
from core.rl_recipes import PPOConfig, RLOOConfig
from core.serve_recipes import ServeConfig
from core.supervised_recipes import DPOConfig, RewardModelTrainingConfig, SFTConfig
from jobs.distil import DistilConfig
from jobs.score import ScoreConfig

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

"""The sections of every recipe: what can be set, its unit, its default, and the rules between fields.

The defaults are the quickstart recipe. Derived numbers are properties. A worker is handed its section, never
the whole recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from core.call_log import CallLogConfig
from core.config import Section
from core.data_recipes import DataConfig, WordProblemsConfig
from core.environment_recipes import LABEL as ENVIRONMENT
from core.environment_recipes import EnvironmentConfig
from core.perplexity_recipes import PERPLEXITY_PARTS, PerplexityRewardConfig
from core.storage_recipes import StorageConfig
from core.watch_recipes import WatchConfig

Precision = Literal["auto", "bf16", "fp32"]


class WandbConfig(Section):
    """Weights & Biases, where `run.trackers` names it. The key is WANDB_API_KEY in the environment, never here."""

    project: str | None = None
    """Project; null: WANDB_PROJECT of the environment, else troupe."""
    entity: str | None = None
    """User or team that owns the project; null: WANDB_ENTITY of the environment, else the key's own."""
    group: str | None = None
    """Runs that are shown together; null: the directory that holds the run (a pipeline, say), unless it is `runs`."""
    tags: list[str] = []
    """Tags beside those of every run: method, model and data."""
    artifacts: Literal["none", "report", "best", "final", "all"] = "none"
    """What is uploaded at the end: report.html with a table of samples; the best checkpoint as well; the final one as well; or each when it is complete. Without the trainer's state."""
    mode: Literal["online", "offline"] | None = None
    """offline keeps it on this machine, in `<run>/wandb`, until `wandb sync`; null: WANDB_MODE of the environment, else online."""


class RunConfig(Section):
    """Where the run lives and how it is watched."""

    name: str = "quickstart"
    """Name of the run; its directory is `<directory>/<name>`."""
    directory: str = "runs"
    """Directory that holds the runs."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: continue where the directory stands, or start; never: start anew, the old run is moved aside; must: refuse to start anew."""
    trackers: list[Literal["wandb", "tensorboard"]] = []
    """Trackers beside the run directory; their keys come from the environment."""
    wandb: WandbConfig = WandbConfig()
    """Where and how Weights & Biases shows the run."""
    max_restarts: int = Field(default=2, ge=0)
    """Times that a run whose worker died starts its roles again and goes on from the last checkpoint."""
    samples_per_step: int = Field(default=2, ge=0)
    """Groups whose texts are written to rollouts.jsonl at every step."""
    calls: CallLogConfig = CallLogConfig()
    """Log of model calls, of the policy and of judges."""
    watch: WatchConfig = WatchConfig()
    """The timeline of steps, and the port that Prometheus reads."""
    storage: StorageConfig = StorageConfig()
    """Backup to an S3-compatible store, from which `resume` goes on on another machine."""

    @field_validator("name")
    @classmethod
    def _name_is_a_path_part(cls, name: str) -> str:
        if not name or "/" in name or name.startswith("."):
            raise ValueError("a run's name is one directory name: not empty, without '/', not starting with '.'")
        return name

    @property
    def path(self) -> Path:
        return Path(self.directory) / self.name


class WarmStartConfig(Section):
    """Supervised steps on the data's demonstrations before reinforcement learning; the result is cached."""

    steps: int = Field(default=400, ge=0)
    """Optimizer steps; 0 leaves the weights as they were initialised."""
    demonstrations_per_step: int = Field(default=64, ge=1)
    """Demonstrations in a step."""
    learning_rate: float = Field(default=4e-3, gt=0)
    """Peak learning rate; it warms up over 50 steps and decays linearly to a twentieth."""
    prompt_weight: float = Field(default=0.0, ge=0, le=1)
    """Loss weight of prompt tokens, 1 for the response; a model made from scratch learns language from both."""


class ScratchModelConfig(Section):
    """A small Qwen2-shaped model and its tokenizer, made from the data set's own text; nothing is downloaded."""

    type: Literal["scratch"] = "scratch"
    hidden_size: int = Field(default=128, ge=64, multiple_of=64)
    """Width; heads are 64 wide."""
    num_layers: int = Field(default=4, ge=1)
    """Decoder layers."""
    vocab_size: int = Field(default=512, ge=300)
    """Tokens of the byte-level BPE tokenizer."""
    max_length: int = Field(default=512, ge=32)
    """Longest sequence in tokens that the model takes."""
    tie_embeddings: bool = True
    """Whether the output head shares the embedding's weights."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """Supervised steps on the data's demonstrations; cached by everything that determines them."""
    cache: str = ".cache/models"
    """Directory of the cache."""


class PretrainedModelConfig(Section):
    """A model from a local directory (a run's checkpoint, say) or by its hub name."""

    type: Literal["pretrained"] = "pretrained"
    path: str
    """Directory in Hugging Face format, a run, s3://bucket/run, or a hub name such as Qwen/Qwen2.5-3B-Instruct."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


ModelConfig = Annotated[ScratchModelConfig | PretrainedModelConfig, Field(discriminator="type")]


class RewardConfig(Section):
    """One reward function of the weighted sum."""

    fn: str
    """A reward of this project (math_answer, regex_format, length, rouge, remote_reward, remote_comparison, judge_qa), or `package.module:function` or `package.module:Class`; see docs/rewards.md."""
    name: str | None = None
    """Name in the logs; the function's by default."""
    weight: float = 1.0
    """Its weight in the sum."""
    args: dict[str, Any] = {}
    """Keyword arguments handed to it."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds after which a call counts as failed; unset: no limit."""
    retries: int = Field(default=0, ge=0)
    """Further attempts after a timeout."""

    @property
    def label(self) -> str:
        return self.name or self.fn.rpartition(":")[2].rpartition(".")[2]


class DynamicSamplingConfig(Section):
    """DAPO's dynamic sampling (2503.14476): groups whose rewards are all equal carry no signal and are replaced."""

    enabled: bool = False
    """Whether to drop and replace them."""
    max_extra_prompts: int = Field(default=128, ge=0)
    """Bound on the replacement prompts of one step; beyond it the step goes on with the groups it has."""


class RolloutConfig(Section):
    """What is sampled in a step."""

    prompts_per_step: int = Field(default=64, ge=1)
    """Prompts (groups) in a step."""
    group_size: int = Field(default=8, ge=1)
    """Branches sampled for each prompt."""
    max_prompt_tokens: int = Field(default=256, ge=1)
    """Longest prompt in tokens."""
    long_prompts: Literal["drop", "refuse"] = "drop"
    """What happens to longer prompts: dropped and counted, or the run is refused."""
    max_response_tokens: int = Field(default=40, ge=1)
    """Longest answer in tokens, its end-of-turn token included; with an environment the longest game, both sides' tokens counted."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the trainer divides its logits by it too. top_p, top_k and min_p stay off: they would make the sampled distribution another one than the policy's."""
    stop: list[str] = []
    """Strings that end an answer, beside the end-of-turn token."""
    max_lag: int = Field(default=0, ge=0)
    """Hard bound, in steps, on the age of the weights that sampled a token: 0 is strictly on-policy; k lets generation run ahead while the policy trains."""
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    """Replacement of groups without signal."""
    timeout_s: float = Field(default=1800, gt=0)
    """Seconds a step's generation may take before the run stops and names the engines that are behind."""

    @property
    def branches_per_step(self) -> int:
        return self.prompts_per_step * self.group_size


class AdaptiveKLConfig(Section):
    """A KL coefficient that follows the KL: larger above the target, smaller below it."""

    target: float = Field(gt=0)
    """KL to hold, in nats per answer."""
    form: Literal["ziegler", "trlx"] = "ziegler"
    """ziegler: 1909.08593, section 2.2; trlx: that library's rule, driven by its estimate of the KL, for comparison with its curves."""
    rate: float = Field(default=0.1, gt=0)
    """ziegler: the coefficient changes by at most a fifth of this share in a step."""
    horizon: int = Field(default=10_000, ge=1)
    """trlx: answers over which the coefficient may change by a fifth."""


class KLConfig(Section):
    """Divergence from the frozen reference (Schulman's estimators)."""

    coef: float = Field(default=0.0, ge=0)
    """Coefficient, with `adaptive` the first one; 0 turns the reference off and no frozen model is loaded."""
    adaptive: AdaptiveKLConfig | None = None
    """Controller of the coefficient; unset: it stays as it is."""
    estimator: Literal["auto", "k1", "k2", "k3"] = "auto"
    """k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r with r = pi_ref / pi; auto: k3 in the loss, k1 in the reward."""
    placement: Literal["loss", "reward"] = "loss"
    """In the loss (k1 is refused there: its gradient is zero in expectation), or subtracted from each token's reward."""

    @property
    def kind(self) -> Literal["k1", "k2", "k3"]:
        """The estimator, `auto` resolved."""
        if self.estimator == "auto":
            return "k3" if self.placement == "loss" else "k1"
        return self.estimator

    @model_validator(mode="after")
    def _k1_has_no_gradient(self) -> KLConfig:
        if self.coef > 0 and self.placement == "loss" and self.estimator == "k1":
            raise ValueError("estimator k1 in the loss has zero expected gradient; use k2 or k3, or placement: reward")
        return self


class ImportanceConfig(Section):
    """Correction for the gap between the sampler's and the trainer's probabilities of the same tokens."""

    type: Literal["none", "truncate", "mask"] = "none"
    """none; truncate: weight min(ratio, high) (TIS); mask: drop tokens whose ratio leaves [low, high] (IcePop). Both need `old_logprobs: recompute`."""
    low: float = Field(default=0.5, ge=0)
    """Lower bound of the ratio (mask)."""
    high: float = Field(default=2.0, gt=0)
    """Upper bound of the ratio."""


class OverlongConfig(Section):
    """What a truncated or very long answer costs."""

    mask_truncated: bool = False
    """Whether truncated answers are left out of the loss (DAPO's overlong filtering)."""
    penalty_tokens: int = Field(default=0, ge=0)
    """L_cache of DAPO's soft overlong punishment in tokens: the reward falls linearly to -1 over the last so many tokens before the limit; 0 turns it off."""
    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the score of an answer that was cut off before its end-of-turn token."""


class AlgorithmConfig(Section):
    """From scores to a loss: GRPO by default; Dr. GRPO, RLOO, REINFORCE and DAPO are settings of it."""

    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce", "gae"] = "grpo"
    """grpo: (r - mean) / std of the group; dr_grpo: r - mean; rloo: r - mean of the others; reinforce: r - mean of the batch; gae: PPO's, with a critic (jobs/train_ppo.py)."""
    score_clip: float | None = Field(default=None, gt=0)
    """Scores are clipped to [-score_clip, score_clip] before anything else; unset: they are not."""
    std: Literal["sample", "population"] = "sample"
    """Standard deviation of grpo: sample (ddof 1, as TRL and OpenRLHF) or population (as ART)."""
    std_epsilon: float = Field(default=1e-4, ge=0)
    """Added to the standard deviation."""
    clip_low: float = Field(default=0.2, ge=0)
    """Lower clip range of the ratio."""
    clip_high: float = Field(default=0.28, ge=0)
    """Upper clip range of the ratio (DAPO's clip-higher when above clip_low)."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound c of dual clip (1912.09729): with a negative advantage the objective is at least c times it."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """token_mean: over all tokens of the optimizer step; sequence_mean: mean of each answer, then over answers; constant: sum over tokens / (answers x max_response_tokens), as Dr. GRPO."""
    ratio: Literal["token", "sequence"] = "token"
    """Unit of the importance ratio: each token, or the whole answer's summed log-probability (RLOO's one action; needs aggregation: sequence_mean)."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Coefficient of an entropy bonus."""
    kl: KLConfig = KLConfig()
    """Divergence from the reference."""
    importance: ImportanceConfig = ImportanceConfig()
    """Sampler/trainer mismatch."""
    overlong: OverlongConfig = OverlongConfig()
    """Truncated and very long answers."""
    old_logprobs: Literal["rollout", "recompute"] = "rollout"
    """Denominator of the ratio: the sampler's log-probabilities, or the trainer's own before its first update of the step (one more forward pass)."""
    minibatches: int = Field(default=4, ge=1)
    """Optimizer steps per rollout and epoch."""
    epochs: int = Field(default=1, ge=1)
    """Passes over a rollout."""

    @model_validator(mode="after")
    def _importance_needs_two_logprobs(self) -> AlgorithmConfig:
        if self.importance.type != "none" and self.old_logprobs != "recompute":
            raise ValueError(
                "importance.type needs old_logprobs: recompute, or the two sides of its ratio are the same numbers"
            )
        if self.ratio == "sequence" and self.aggregation != "sequence_mean":
            raise ValueError(
                f"ratio: sequence treats an answer as one action and needs aggregation: sequence_mean (got {self.aggregation}), "
                "or long answers would count more"
            )
        if self.importance.low >= self.importance.high:
            raise ValueError(
                f"importance.low ({self.importance.low}) must be below importance.high ({self.importance.high})"
            )
        return self


class LoraConfig(Section):
    """Low-rank adapters through peft; published merged, switched off they are the reference."""

    rank: int = Field(default=16, ge=1)
    """Rank r."""
    alpha: float = Field(default=16, gt=0)
    """Scale alpha; the update is multiplied by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Modules that get an adapter."""


class PolicyConfig(Section):
    """The trained model: DeepSpeed ZeRO, optimizer and schedule."""

    num_ranks: int = Field(default=1, ge=1)
    """Processes (one per GPU)."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """ZeRO stage: 1 shards optimizer states, 2 also gradients, 3 also parameters."""
    precision: Precision = "auto"
    """auto: bf16 where the processor computes in it, fp32 elsewhere. Masters are always fp32."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Learning rate after warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Where linear and cosine schedules end, as a share of the peak."""
    row_tokens: int = Field(default=2560, ge=16)
    """Token budget of a packed row, the unit of one forward and backward pass; a larger group gets a row of its own."""
    logits_chunk: int = Field(default=2**26, ge=1)
    """Most logits (tokens x vocabulary) held at once; beyond it the head runs in chunks and recomputes in the backward pass."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    frozen_layers: float = Field(default=0.0, ge=0, lt=1)
    """Share of the lowest layers, and with them the embedding, whose weights stay as they are."""
    offload: Literal["none", "optimizer", "optimizer_and_parameters"] = "none"
    """What ZeRO keeps in host memory."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights."""
    init_timeout_s: float = Field(default=600, gt=0)
    """Seconds the workers may take to start."""


class RewardModelConfig(Section):
    """A frozen reward model whose score is part of the reward, and of the held-out metrics, as `reward_model`."""

    path: str
    """Directory or hub name of a model with a trained scalar head; its tokenizer must be the policy's."""
    weight: float = 1.0
    """Its weight in the sum of rewards."""
    relative_to_reference: bool = False
    """Whether the score of the sample's reference answer (its gold) is subtracted, joined by the sample's id."""
    num_ranks: int = Field(default=1, ge=1)
    """Processes."""
    precision: Precision = "auto"
    """Precision of its weights."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


class ReferenceConfig(Section):
    """The frozen model of the KL term; used only when kl.coef > 0."""

    source: Literal["own_weights", "adapter_off"] = "own_weights"
    """own_weights: a second copy of the starting model; adapter_off: the policy without its LoRA adapter."""
    num_ranks: int = Field(default=1, ge=1)
    """Processes of a reference with its own weights."""


class EngineConfig(Section):
    """A vLLM engine."""

    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs per engine."""
    max_running: int = Field(default=256, ge=1)
    """Sequences that an engine runs at once."""
    memory_fraction: float = Field(default=0.85, gt=0, lt=1)
    """GPU memory share of an engine."""
    cpu_cache_gib: float = Field(default=1.0, gt=0)
    """KV cache in GiB on a CPU."""
    enforce_eager: bool = False
    """Run without CUDA graphs (always so on a CPU)."""
    init_timeout_s: float = Field(default=600, gt=0)
    """Seconds an engine may take to start."""


class GeneratorConfig(EngineConfig):
    """The vLLM engines that sample."""

    num_engines: int = Field(default=1, ge=1)
    """Engines."""
    sync_timeout_s: float = Field(default=300, gt=0)
    """Seconds each phase of a weight sync may take."""


class RewarderConfig(Section):
    """Where rewards run."""

    num_workers: int = Field(default=0, ge=0)
    """Processes; 0 scores in the driver, which is best for cheap rewards on few cores."""
    max_concurrency: int = Field(default=32, ge=1)
    """Groups in flight per worker, for rewards that wait on a network."""


class PlacementConfig(Section):
    """Which role gets which devices; the resulting table is printed at the start and kept in the report."""

    mode: Literal["colocated", "separate"] = "colocated"
    """colocated: policy and generators share devices in time (vLLM sleeps while the policy trains; CUDA IPC); separate: each role has its own (NCCL). On a CPU the transport is gloo in both."""
    address: str | None = None
    """Ray address; unset: a running cluster if RAY_ADDRESS names one, else one of our own on loopback."""
    backend: Literal["ray", "inline"] = "ray"
    """ray: one process per rank; inline: policy in this process, for debugging."""


class ConsistencyConfig(Section):
    """The gate: after each sync the log-probabilities of probe tokens must agree between trainer and generator."""

    num_probes: int = Field(default=4, ge=1)
    """Probe sequences."""
    max_gap: float | None = Field(default=None, gt=0)
    """Largest allowed mean |difference| in nats; unset: 1e-3 in fp32, 0.05 in bf16."""


class EvaluationConfig(Section):
    """Held-out evaluation during the run: before the first step, every n steps, after the last."""

    every: int = Field(default=10, ge=0)
    """Steps between evaluations; 0: only before the first and after the last step."""
    num_samples: int | None = Field(default=None, ge=1)
    """Held-out samples; all when unset."""
    max_response_tokens: int | None = Field(default=None, ge=1)
    """Longest answer; rollout.max_response_tokens when unset."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    keep_answers: int = Field(default=256, ge=0)
    """Held-out answers of an evaluation that go into answers.jsonl, the same samples each time: the interval at the end is over them, and jobs/benchmark.py uses them where all of its samples are there."""
    metrics: list[RewardConfig] = [RewardConfig(fn="math_answer", name="accuracy")]
    """Reward functions whose held-out mean is reported as eval/<set>/<name>; a reward model and a perplexity reward are measured without being named."""
    best_metric: str | None = None
    """Metric of the best checkpoint, `environment/win` say; when unset the first of `metrics`, or the reward model where there are none."""
    higher_is_better: bool = True
    """Direction of best_metric."""

    @property
    def best(self) -> str:
        return self.best_metric or (self.metrics[0].label if self.metrics else "reward_model")

    def check(self, model_parts: Sequence[str]) -> None:
        """Raise ValueError unless the best checkpoint's metric is measured, by a function or by one of `model_parts`."""
        names = [*(metric.label for metric in self.metrics), *model_parts]
        if not names:
            raise ValueError("evaluation.metrics must name at least one metric")
        if self.best not in names and self.best_metric is None:
            raise ValueError(
                f"evaluation.metrics is empty; name the metric of the best checkpoint in evaluation.best_metric ({', '.join(names)})"
            )
        # What a part like environment/win is called, only the environment knows.
        if self.best not in names and self.best.partition("/")[0] not in names:
            raise ValueError(f"best_metric {self.best!r} is not among the metrics ({', '.join(names)})")


class CheckpointConfig(Section):
    """When and how much is kept."""

    every: int = Field(default=20, ge=0)
    """Steps between checkpoints; 0: only after the last step."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints kept, beside the best."""


class GRPOConfig(Section):
    """Group-relative policy optimisation (DeepSeekMath, 2402.03300) and its relatives."""

    has_critic: ClassVar[bool] = False

    steps: int = Field(default=30, ge=1)
    """Training steps: rollouts, each followed by its optimizer steps."""
    seed: int = 0
    """Seed of everything: data order, sampling, initialisation."""
    run: RunConfig = RunConfig()
    """Where the run lives."""
    model: ModelConfig = ScratchModelConfig()
    """The model that is trained."""
    data: DataConfig = WordProblemsConfig()
    """Prompts and held-out set."""
    rewards: list[RewardConfig] = [RewardConfig(fn="math_answer")]
    """What a good answer is: a weighted sum."""
    reward_model: RewardModelConfig | None = None
    """A reward model, whose score is added to the sum."""
    perplexity_reward: PerplexityRewardConfig | None = None
    """How well a frozen model foresees the gold answer from the policy's, added to the sum."""
    environment: EnvironmentConfig | None = None
    """Who answers the model in games of several turns; its reward is added to the sum."""
    rollout: RolloutConfig = RolloutConfig()
    """What is sampled."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """From scores to a loss."""
    policy: PolicyConfig = PolicyConfig()
    """The trained model's engine."""
    reference: ReferenceConfig = ReferenceConfig()
    """The frozen model of the KL term."""
    generator: GeneratorConfig = GeneratorConfig()
    """The engines that sample."""
    rewarder: RewarderConfig = RewarderConfig()
    """Where rewards run."""
    placement: PlacementConfig = PlacementConfig()
    """Which role gets which devices."""
    consistency: ConsistencyConfig = ConsistencyConfig()
    """The gate between trainer and generator."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out evaluation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When and how much is kept."""

    @model_validator(mode="after")
    def _numbers_fit(self) -> GRPOConfig:
        rollout, algorithm = self.rollout, self.algorithm
        if not self.rewards and not self.model_parts:
            raise ValueError(
                "rewards must name at least one function, such as {fn: math_answer}, or set reward_model, perplexity_reward or environment"
            )
        self.evaluation.check(self.model_parts)
        if self.environment is not None:
            self.environment.check_limit(rollout.max_response_tokens)
            if self.evaluation.max_response_tokens is not None:
                self.environment.check_limit(self.evaluation.max_response_tokens, "evaluation.max_response_tokens")
        if algorithm.advantage in ("grpo", "dr_grpo", "rloo") and rollout.group_size < 2:
            raise ValueError(
                f"algorithm.advantage {algorithm.advantage!r} compares answers of one prompt and needs rollout.group_size >= 2 "
                f"(got {rollout.group_size}); set group_size, or advantage: reinforce"
            )
        if algorithm.advantage == "gae" and not self.has_critic:
            raise ValueError("algorithm.advantage gae needs a critic; use jobs/train_ppo.py")
        if algorithm.kl.adaptive is not None and not algorithm.kl.coef:
            raise ValueError("algorithm.kl.adaptive needs a first coefficient; set algorithm.kl.coef above 0")
        if algorithm.minibatches > rollout.prompts_per_step:
            raise ValueError(
                f"algorithm.minibatches ({algorithm.minibatches}) must be at most rollout.prompts_per_step "
                f"({rollout.prompts_per_step}): a group is never split"
            )
        if self.policy.num_ranks * algorithm.minibatches > rollout.prompts_per_step:
            raise ValueError(
                f"policy.num_ranks x algorithm.minibatches ({self.policy.num_ranks} x {algorithm.minibatches}) must be at most "
                f"rollout.prompts_per_step ({rollout.prompts_per_step}), so that every rank has a group in every minibatch"
            )
        if algorithm.overlong.penalty_tokens >= rollout.max_response_tokens:
            raise ValueError(
                f"algorithm.overlong.penalty_tokens ({algorithm.overlong.penalty_tokens}) must be below "
                f"rollout.max_response_tokens ({rollout.max_response_tokens})"
            )
        if self.reference.source == "adapter_off" and algorithm.kl.coef > 0 and self.policy.lora is None:
            raise ValueError("reference.source adapter_off needs policy.lora; set it, or reference.source: own_weights")
        if isinstance(self.model, ScratchModelConfig):
            longest = rollout.max_prompt_tokens + max(
                rollout.max_response_tokens, self.evaluation.max_response_tokens or 0
            )
            if longest > self.model.max_length:
                raise ValueError(
                    f"rollout.max_prompt_tokens + max_response_tokens ({longest}) must be at most model.max_length ({self.model.max_length})"
                )
        if self.placement.backend == "inline" and (self.policy.num_ranks > 1 or self.generator.num_engines > 1):
            raise ValueError("placement.backend inline runs one policy rank and one engine; use backend: ray for more")
        return self

    @property
    def model_precision(self) -> Precision:
        return self.policy.precision

    @property
    def kl_needs_reference(self) -> bool:
        return self.algorithm.kl.coef > 0

    @property
    def model_parts(self) -> list[str]:
        """What is measured of every answer besides the functions, in training and held out, by the names that metrics have."""
        measured = ["reward_model"] if self.reward_model is not None else []
        measured += ["perplexity", *PERPLEXITY_PARTS] if self.perplexity_reward is not None else []
        return measured + ([ENVIRONMENT] if self.environment is not None else [])

    @property
    def scorer_is_reference(self) -> bool:
        """Whether the perplexity reward can ask the reference: the same weights, in the same precision."""
        scorer = self.perplexity_reward
        return (
            scorer is not None
            and scorer.path is None
            and scorer.precision == self.policy.precision
            and self.kl_needs_reference
            and self.reference.source == "own_weights"
        )

    def arithmetic(self) -> str:
        """The derived numbers in one sentence, printed at the start."""
        rollout, algorithm = self.rollout, self.algorithm
        return (
            f"{rollout.prompts_per_step} prompts x {rollout.group_size} branches = {rollout.branches_per_step} sequences a step, "
            f"{algorithm.minibatches * algorithm.epochs} optimizer steps of about {rollout.prompts_per_step // algorithm.minibatches} groups "
            f"over {self.policy.num_ranks} rank{'s' if self.policy.num_ranks > 1 else ''}, {self.steps} steps"
        )

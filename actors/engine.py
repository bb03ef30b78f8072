"""The training engine: DeepSpeed ZeRO around a packed model.

One `Engine` lives in each rank of a trained role. It turns a shard of a batch into rows, keeps the ranks'
collectives in step, and knows how to gather, save and load sharded weights. What is minimised is handed in
as a function of flat vectors.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from troupe.actors.adapters import adapted_layers, adapter_of, merged, published, with_adapter
from troupe.actors.gradient_sums import GradientSums
from troupe.actors.layout import lay_out, read_trainer
from troupe.actors.meters import record
from troupe.actors.process_group import join_process_group
from troupe.actors.shared_trunk import TrainedParts
from troupe.actors.trainer_state import LAYOUT, TRAINER_STATE, read_state
from troupe.algorithms.hidden import inner_model, path_of
from troupe.algorithms.in_fp32 import InFloat32
from troupe.algorithms.loading import Head, as_published, load_model
from troupe.algorithms.logprobs import PackedModel
from troupe.algorithms.packing import Batch, Row, pack
from troupe.algorithms.padding import use_pad_token
from troupe.algorithms.values import PackedScalarModel
from troupe.config.models import PolicyConfig
from troupe.errors import CheckpointError, ConfigError, NumericalError
from troupe.files import read_json
from troupe.hardware import hardware

LossFn = Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""(what the model's forward returns, [n] each; then the batch's columns at these tokens, with their `branch_ids` and
`group_ids`) -> (loss, metrics); both are sums that already contain the division by the global count. A vocabulary head
returns log-probabilities and entropies, a scalar head values. The tokens are those of whole groups."""


class Engine:
    """A language model under ZeRO, with its optimizer and schedule."""

    def __init__(
        self,
        model_path: str,
        config: PolicyConfig,
        *,
        total_steps: int,
        head: Head = "vocabulary",
        trust_remote_code: bool = False,
        seed: int = 0,
        keep_start: bool = False,
        pad_token: int | None = None,
    ) -> None:
        """Load the model at `model_path` on every rank; `total_steps` optimizer steps end the schedule. `keep_start`:
        keep
        copies of what is trained, so that the starting model can be asked as well. `pad_token`: the padding of what is
        saved.
        """
        import deepspeed

        self.config = config
        self.precision = hardware().precision(config.precision)
        settings = _deepspeed_settings(config, self.precision)
        join_process_group(config.collective_timeout_s)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(seed)
        dropout = config.dropouts.get("dropout", 0.0)
        model = load_model(model_path, self.precision, head=head, trust_remote_code=trust_remote_code, dropout=dropout)
        if pad_token is not None:
            use_pad_token(model, pad_token)
        self.forward_path = path_of(model)
        if self.forward_path.alone and config.zero_stage == 3 and config.num_ranks > 1:
            raise ConfigError(
                f"{model_path} is run with one sequence per pass, and under zero_stage 3 ranks with different "
                f"numbers of sequences "
                f"would wait for each other (num_ranks {config.num_ranks}); use zero_stage 2, or num_ranks 1"
            )
        self.branches = self.forward_path.branches
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        if config.lora is not None:
            model = with_adapter(model, config.lora, head)
        if config.frozen_layers:  # after the adapter, so that lower layers get none that learns
            _freeze(inner_model(model), config.frozen_layers)
        self.packed = (
            PackedModel(model, logits_chunk=config.logits_chunk) if head == "vocabulary" else PackedScalarModel(model)
        )
        self._seed, self._random = seed, config.dropouts != {}
        # Evaluation mode is without noise in every architecture; transformers checkpoints in training mode alone.
        self._training_mode = self._random or config.gradient_checkpointing
        self.packed.train(self._training_mode)
        if keep_start:
            self.packed.start = TrainedParts(model)
        trainable = [parameter for parameter in self.packed.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over the memory: eight times faster on a CPU than a kernel for each operation
        )
        self.engine, self.optimizer, _, self.schedule = deepspeed.initialize(
            model=self.packed,
            optimizer=optimizer,
            lr_scheduler=lambda wrapped: torch.optim.lr_scheduler.LambdaLR(wrapped, _schedule(config, total_steps)),
            config=settings,
        )
        self.engine.checkpoint_engine.load = read_state  # DeepSpeed's own would run what a pickle asks for

    @property
    def model(self) -> PreTrainedModel:
        """The Hugging Face model (inside its adapter wrapper, if it has one); under ZeRO-3 its parameters are
        shards.
        """
        return self.packed.model

    @torch.no_grad()
    def outputs(self, batch: Batch, *, in_fp32: bool = False, **options: Any) -> torch.Tensor:
        """Return [N] fp32 on the CPU: the head's first output at this rank's tokens; `in_fp32`: computed in fp32,
        whatever the weights' precision. A collective under ZeRO-3.
        """
        values = torch.zeros(batch.num_tokens)
        self.packed.eval()  # no dropout
        for row in self._rows(batch):
            with InFloat32() if in_fp32 else contextlib.nullcontext():
                output = self.engine(row, **options)[0]
            if row.token_index.numel():
                values[row.token_index] = output.cpu()
        self.packed.train(self._training_mode)
        return values

    @torch.no_grad()
    def evaluate_loss(self, batch: Batch, loss: LossFn, **options: Any) -> dict[str, float]:
        """Loss and metrics of this rank's shard, summed over the ranks; nothing is trained."""
        totals: dict[str, torch.Tensor] = {}
        self.packed.eval()
        for row, columns in self._rows_with_columns(batch):
            _add(totals, _loss_of_row(row, columns, loss, self.engine(row, **options))[1])
        self.packed.train(self._training_mode)
        return self._sum_over_ranks(totals)

    def update(self, batch: Batch, loss: LossFn, **options: Any) -> dict[str, float]:
        """Make an optimizer step on this rank's shard; metrics are summed over the ranks. `options` go to the
        forward pass.

        Raises NumericalError, before any weight has changed, when a loss is not finite.
        """
        totals: dict[str, torch.Tensor] = {}
        rows = list(self._rows_with_columns(batch))
        if self._random:  # by step and rank, so that a resumed run goes on as it would have
            torch.manual_seed(hash((self._seed, self.engine.global_steps, self.rank)) % 2**63)
        sums = GradientSums(self.packed.parameters() if _sums_by_hand(self.config, self.precision) else [])
        for index, (row, columns) in enumerate(rows):
            last = index == len(rows) - 1
            self.engine.set_gradient_accumulation_boundary(last)
            value, metrics = _loss_of_row(row, columns, loss, self.engine(row, **options))
            if last:
                sums.put_back()
            # ZeRO averages over the ranks; the loss is already a share of the global sum.
            self.engine.backward(value * self.world_size)
            if not last:
                sums.take()
            _add(totals, metrics)
            record("trainer_rows", 1)
            record("trainer_tokens", row.input_ids.numel())
        summed = self._sum_over_ranks(totals)
        if not math.isfinite(summed["loss"]):
            raise NumericalError(
                f"the loss is {summed['loss']}; the weights were not updated. Look at policy/grad_norm and the "
                f"learning rate "
                f"({self.learning_rate:g}) before this step, and at the rewards of this step"
            )
        summed["learning_rate"] = self.learning_rate
        grad_norm = self._grad_norm_without_zero()
        self.engine.step()
        if grad_norm is None:
            grad_norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(grad_norm):
            raise NumericalError(
                f"the gradient norm is {grad_norm} after a finite loss; lower the learning rate "
                f"({self.learning_rate:g})"
            )
        return {**summed, "grad_norm": grad_norm}

    def _grad_norm_without_zero(self) -> float | None:
        """Return the norm that DeepSpeed keeps to itself when no ZeRO optimizer is at work; None when it will report
        one.
        """
        if self.config.zero_stage > 0 or self.precision == "bf16":
            return None
        gradients = [parameter.grad for parameter in self.packed.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    @property
    def learning_rate(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def at_start(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model is the one it started from: its adapter is off, or what was trained is as it was."""
        kept = getattr(self.packed, "start", None)
        return self.model.disable_adapter() if kept is None else kept.in_place()

    def _rows(self, batch: Batch) -> list[Row]:
        """Return this rank's rows, as many as the rank with the most: a shorter rank adds rows that read nothing."""
        rows = pack(batch, self.config.row_tokens, branches=self.branches) if batch.num_groups else []
        if self.world_size == 1:
            return rows
        most = torch.tensor(len(rows), device=self.engine.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return rows + [_idle_row(self.branches)] * (int(most) - len(rows))

    def _rows_with_columns(self, batch: Batch) -> Iterator[tuple[Row, dict[str, torch.Tensor]]]:
        """Yield each row with the batch's columns at its tokens."""
        branch_ids = batch.branch_ids
        whole = {**batch.columns, "branch_ids": branch_ids, "group_ids": batch.group_ids[branch_ids]}
        for row in self._rows(batch):
            yield row, {name: column[row.token_index].to(self.engine.device) for name, column in whole.items()}

    def _sum_over_ranks(self, totals: dict[str, torch.Tensor]) -> dict[str, float]:
        # A rank with idle rows alone knows only its loss; every rank must reduce the same names.
        names = sorted(totals)
        if self.world_size > 1:
            known: list[list[str] | None] = [None] * self.world_size
            dist.all_gather_object(known, names)
            names = sorted({name for rank in known for name in rank or []})
        values = torch.stack([totals.get(name, torch.zeros(())).double().to(self.engine.device) for name in names])
        if self.world_size > 1:
            dist.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))

    # -- weights ------------------------------------------------------------------------------------------

    def weight_shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Return (name in the Hugging Face model, dtype, full shape) of what `weights` yields, without gathering."""
        return [
            (name, parameter.dtype, tuple(getattr(parameter, "ds_shape", parameter.shape)))
            for name, parameter in published(self.model).items()
        ]

    def weights(self, group_names: list[list[str]]) -> Iterator[list[torch.Tensor]]:
        """Full weights, one list per group of names: a collective that every rank iterates in the same order.

        Adapters are merged while their group is gathered and taken out again afterwards.
        """
        import deepspeed

        parameters, layers = published(self.model), adapted_layers(self.model)
        for names in group_names:
            needed = [part for name in names for part in (parameters[name], *adapter_of(layers.get(name)))]
            if self.config.zero_stage < 3:
                yield [merged(parameters[name], layers.get(name)) for name in names]
                continue
            with deepspeed.zero.GatheredParameters(needed):
                full = [merged(parameters[name], layers.get(name)) for name in names]
            yield full

    # -- checkpoints --------------------------------------------------------------------------------------

    def save(
        self, directory: str, tokenizer: PreTrainedTokenizerBase | None = None, *, trainer_state: bool = True
    ) -> None:
        """Write Hugging Face format (adapters merged) and, unless asked otherwise, what resuming needs. A
        collective.
        """
        state: dict[str, torch.Tensor] = {}
        names = [name for name, _, _ in self.weight_shapes()]
        for name, tensors in zip(names, self.weights([[name] for name in names]), strict=True):
            if self.rank == 0:
                state[name] = tensors[0].cpu().contiguous()
        if self.rank == 0:
            with as_published(inner_model(self.model)):
                inner_model(self.model).save_pretrained(directory, state_dict=state)
            if tokenizer is not None:
                tokenizer.save_pretrained(directory)
        if trainer_state:
            self.engine.save_checkpoint(str(Path(directory) / TRAINER_STATE), tag="state", save_latest=False)
            if self.rank == 0:
                (Path(directory) / TRAINER_STATE / LAYOUT).write_text(json.dumps(self.layout()))
        dist.barrier()

    def checkpoint_bytes(self) -> int:
        """Estimate the bytes that `save` writes on all ranks: the weights, below ZeRO-3 once more, and of what is
        trained two
        fp32 moments and, where ZeRO keeps them, masters.
        """
        whole = {parameter: getattr(parameter, "ds_numel", parameter.numel()) for parameter in self.packed.parameters()}
        weights = sum(numel * parameter.element_size() for parameter, numel in whole.items())
        trained = sum(numel for parameter, numel in whole.items() if parameter.requires_grad)
        masters = self.config.zero_stage > 0 or self.precision == "bf16"
        return weights * (1 if self.config.zero_stage == 3 else 2) + trained * 4 * (3 if masters else 2)

    def load(self, directory: str) -> None:
        """Continue from what `save` wrote, in this layout or another: weights, optimizer, schedule. A collective."""
        source = Path(directory) / TRAINER_STATE
        layout = read_json(source / LAYOUT)
        if layout is None:
            raise CheckpointError(
                f"{directory} holds no trainer state to resume from; start a new run with model.path={directory}"
            )
        try:
            if layout == self.layout():
                path, _ = self.engine.load_checkpoint(str(source), tag="state")
                if path is None:
                    raise CheckpointError(f"DeepSpeed could not load the trainer state in {source}")
            else:
                stored = read_trainer(source / "state", layout, self._trained_sizes())
                lay_out(self.engine, stored, self.config.zero_stage)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, FileNotFoundError) as error:
            raise CheckpointError(
                f"{source} is not the state of this trainer ({type(error).__name__}: {error}); remove {directory}, "
                f"and the checkpoint "
                "before it is taken"
            ) from error
        self._keep_to_the_recipe()

    def _trained_sizes(self) -> dict[str, int]:
        """Return name -> elements of what is trained, in the optimizer's order."""
        trained = ((name, each) for name, each in self.packed.named_parameters() if each.requires_grad)
        return {name: getattr(each, "ds_numel", each.numel()) for name, each in trained}

    def _keep_to_the_recipe(self) -> None:
        """Restore the config's settings: a loaded state brings those it was saved with; the config's count, which a
        fork may have changed.
        """
        config, schedule = self.config, self.schedule
        schedule.base_lrs = [config.learning_rate for _ in schedule.base_lrs]
        rates = [
            base * share(schedule.last_epoch)
            for base, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        schedule._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group.update(lr=rate, betas=config.betas, weight_decay=config.weight_decay)

    def layout(self) -> dict[str, Any]:
        """Return what must be the same for DeepSpeed to load its own files."""
        layout = {"num_ranks": self.world_size, "zero_stage": self.config.zero_stage, "precision": self.precision}
        return layout | ({"shared_trunk": True} if hasattr(self.packed, "start") else {})

    # -- sharing a device ---------------------------------------------------------------------------------

    def offload(self) -> None:
        """Move weights, gradients and optimizer to host memory, so that a generator can use the device."""
        if hardware().device == "cuda" and self.config.zero_stage == 3 and self.config.offload == "none":
            self.engine.offload_states()
            torch.cuda.empty_cache()

    def reload(self) -> None:
        """Bring back what `offload` moved."""
        if hardware().device == "cuda" and self.config.zero_stage == 3 and self.config.offload == "none":
            self.engine.reload_states()

    def close(self) -> None:
        """Give the memory back. The process group stays: DeepSpeed remembers groups of its own that belong to it, and
        the next engine in this process (a policy after its warm start, inline) joins it again."""
        self.engine.destroy()


def _freeze(model: PreTrainedModel, share: float) -> None:
    """Switch off the gradients of the embedding and of the lowest `share` of the layers."""
    backbone = getattr(model, model.base_model_prefix)
    backbone.get_input_embeddings().requires_grad_(False)
    layers = backbone.layers if hasattr(backbone, "layers") else backbone.h  # GPT-2 and GPT-J
    for layer in layers[: round(share * len(layers))]:
        layer.requires_grad_(False)


def _loss_of_row(
    row: Row, columns: dict[str, torch.Tensor], loss: LossFn, outputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    if row.token_index.numel() == 0:  # a row that only keeps the collectives in step
        # Backward from every output, as in any other row: ZeRO-3 counts on ranks that go through the same modules.
        value = sum((output.sum() for output in outputs), start=torch.zeros(())) * 0.0
        return value, {"loss": value.detach()}
    value, metrics = loss(*outputs, columns)
    return value, {**metrics, "loss": value.detach()}


def _add(totals: dict[str, torch.Tensor], metrics: dict[str, torch.Tensor]) -> None:
    for name, metric in metrics.items():
        totals[name] = totals[name] + metric if name in totals else metric


def _idle_row(branches: bool) -> Row:
    """Return a forward pass over two tokens that belong to no batch."""
    prompt, answer = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    one = torch.ones(1, dtype=torch.int64)
    batch = Batch(prompt_ids=prompt, prompt_lengths=one, branch_counts=one, branch_lengths=one, token_ids=answer)
    (row,) = pack(batch, 2, branches=branches)
    return Row(
        **{**{name: getattr(row, name) for name in Row.__slots__}, "token_index": torch.zeros(0, dtype=torch.int64)}
    )


def _schedule(config: PolicyConfig, total_steps: int) -> Callable[[int], float]:
    """Return the learning rate as a share of its peak at an optimizer step."""

    def share(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
        shape = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[
            config.schedule
        ]
        return 1.0 if config.schedule == "constant" else config.min_lr_ratio + (1 - config.min_lr_ratio) * shape

    return share


def _sums_by_hand(config: PolicyConfig, precision: str) -> bool:
    """Return whether rows are added in fp32 by us: below stage 2 DeepSpeed does so in another optimizer alone, with
    other files.
    """
    return precision == "bf16" and config.zero_stage < 2


def _deepspeed_settings(config: PolicyConfig, precision: str) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage}
    sums: dict[str, Any] = {}
    if precision == "bf16" and config.zero_stage >= 2:
        sums["data_types"] = {"grad_accum_dtype": "fp32"}
    if precision == "bf16" and config.num_ranks > 1:
        sums["communication_data_type"] = "fp32"
        zero["reduce_bucket_size"] = 250_000_000  # half of DeepSpeed's numbers, which take twice the bytes now
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": hardware().device == "cuda"}
    if config.offload == "optimizer_and_parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": hardware().device == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision == "bf16"},
        **sums,
        "gradient_clipping": config.max_grad_norm,
        "steps_per_print": 2**31,
    }

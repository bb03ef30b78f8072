"""How a model is run so that a token's log-probability is the model's own: tried out once per architecture, and kept.

Packed branches and padded rows are fast, and right for most architectures. Others compute something else there without
an error: a rotary embedding that depends on the row's length, a convolution that runs into padding, an attention kernel
that forgets a bias, logits that are scaled in a way of their own. So two random layers of a model's config (more where
its layers alternate) are run in each way, fastest first, until one agrees with the model's own `forward` with eager
attention, one sequence at a time. `load_model` asks `forward_path`; the answer is remembered in `.cache/forward_paths`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import json
import logging
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from troupe.algorithms.attention import PACKED_ATTENTION, rope_reach, supports_branches
from troupe.algorithms.hidden import ForwardPath, forget_lengths
from troupe.algorithms.logprobs import PackedModel
from troupe.algorithms.packing import Batch, pack
from troupe.errors import CheckpointError
from troupe.files import read_json, write_atomically
from troupe.project import CACHE
from troupe.records import Branch, Group, Sample

log = logging.getLogger(__name__)

FORWARD_PATHS = CACHE / "forward_paths"
TOLERANCE = 1e-4
"""Largest |difference| of log-probabilities in fp32; other sums make 6e-6, other mathematics 1e-2 and more."""
VOCABULARY = 128
SHAPES = ((1, (5, 1)), (12, (4, 4)), (30, (18, 2)))
"""(prompt, branches) of the groups that are tried, in tokens."""
WINDOW = 8
"""Sliding windows and chunks of the layers that are tried: shorter than the sequences, or they would not matter."""
REACH = 24
"""What a rotary embedding that depends on the length takes for its original length, for the same reason."""
Width = Literal["few heads", "narrow", "wide"]
"""How narrow a small model is: MLPs, experts and heads, MLPs and experts, or nothing but its layers."""
HEADS = (
    ("hidden_size", "n_embd", "d_model"),
    ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    ("num_key_value_heads", "num_kv_heads"),
)
MOST_PARAMETERS = 1_500_000_000


def forward_path(
    config: PreTrainedConfig, *, name: str = "the model", packed: bool = True, trust_remote_code: bool = False
) -> ForwardPath:
    """Return the fastest way to run models with this config that gives their own log-probabilities; `packed`: whether
    packed branches may be it.

    Raises CheckpointError where none does.
    """
    file = FORWARD_PATHS / f"{_key(config, packed)}.json"
    known = read_json(file)
    if known is None:
        known = _tried(config, packed=packed, trust_remote_code=trust_remote_code)
        with contextlib.suppress(OSError):  # a machine that keeps nothing tries again
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(known))
    if "refused" in known:
        raise CheckpointError(f"{name} ({config.model_type}) {known['refused']}; use a model of another architecture")
    path = ForwardPath(**known)
    if path.alone or path.own_logits:
        log.warning(
            "%s (%s) is run as %s, which is slower: other ways give other log-probabilities",
            name,
            config.model_type,
            path,
        )
    return path


def forward_path_at(path: str, *, trust_remote_code: bool = False) -> tuple[ForwardPath, int | None]:
    """Return (`forward_path` of the model at a directory or hub name; tokens up to which it bears padding even where
    each of its sequences gets a pass of its own, None where there is no such length).
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    return forward_path(config, name=path, trust_remote_code=trust_remote_code), rope_reach(config)


def _key(config: PreTrainedConfig, packed: bool) -> str:
    """Return a hash of all that the answer depends on: the config, the libraries, our own code."""
    here = Path(__file__).parent
    code = [
        (here / f"{module}.py").read_text()
        for module in ("attention", "forward_paths", "heads", "hidden", "logprobs", "packing")
    ]
    settings = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    facts = [settings, packed, torch.__version__, transformers.__version__, code]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _tried(config: PreTrainedConfig, *, packed: bool, trust_remote_code: bool) -> dict[str, Any]:
    """Return the first way that agrees with the model itself, as keyword arguments; or why the model is `refused`."""
    groups = _groups()
    with _quiet():
        try:
            small, model = _small_model(config, trust_remote_code=trust_remote_code)
        except Exception as error:  # whatever a config that was made smaller does to a model's code
            log.info("%s cannot be tried in small: %s", config.model_type, str(error).partition("\n")[0])
            return asdict(ForwardPath(branches=False, alone=True, attention="eager", own_logits=True))
        expected = own_logprobs(model, groups)
        if not _is_causal(model, groups[-1]):
            return {"refused": "sees later tokens, so it is no causal language model"}
        for path in _candidates(config, packed=packed):
            with contextlib.suppress(Exception):  # a way that fails is no way
                found = logprobs(_with_weights_of(model, small, path, trust_remote_code), groups)
                if float((found - expected).abs().max()) <= TOLERANCE:
                    return asdict(path)
    return {"refused": "gives other log-probabilities in every way it can be run here than its own forward pass"}


def _candidates(config: PreTrainedConfig, *, packed: bool) -> Iterator[ForwardPath]:
    """Ways to run a model, fastest first."""
    if packed and supports_branches(config):
        yield ForwardPath(branches=True, attention=PACKED_ATTENTION)
    for alone, attention, own_logits in itertools.product((False, True), (None, "eager"), (False, True)):
        yield ForwardPath(branches=False, alone=alone, attention=attention, own_logits=own_logits)


@torch.no_grad()
def own_logprobs(model: PreTrainedModel, groups: Sequence[Group]) -> torch.Tensor:
    """Return [N]: the definition: each prompt with one branch through the model's own `forward`."""
    values = []
    for prompt, branch in ((group.prompt_ids, branch) for group in groups for branch in group.branches):
        forget_lengths(model)
        ids = torch.tensor([[*prompt, *branch.token_ids]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        values.append(logits.log_softmax(-1).gather(-1, torch.tensor(branch.token_ids)[:, None])[:, 0])
    return torch.cat(values)


@torch.no_grad()
def logprobs(model: PreTrainedModel, groups: Sequence[Group]) -> torch.Tensor:
    """Return [N]: what the model's `forward_path` gives, several sequences in a row."""
    batch, packed = Batch.from_groups(groups), PackedModel(model)
    values = torch.zeros(batch.num_tokens)
    for row in pack(batch, 4096, branches=model.forward_path.branches):
        values[row.token_index] = packed(row)[0]
    return values


def _is_causal(model: PreTrainedModel, group: Group) -> bool:
    """Return whether the beginning of a sequence gets the same logits without its end."""
    ids = torch.tensor([[*group.prompt_ids, *group.branches[0].token_ids]])
    half = ids.shape[1] // 3  # below REACH: no embedding that depends on the length takes part
    with torch.no_grad():
        forget_lengths(model)
        begun = model(input_ids=ids[:, :half], use_cache=False).logits
        whole = model(input_ids=ids[:, : half + 1], use_cache=False).logits[:, :half]
    return bool((begun - whole).abs().max() <= 1e-2)


def _groups() -> list[Group]:
    """Groups of random tokens; the first four ids are left to special tokens."""
    draw = random.Random(0)
    groups = []
    for prompt, branches in SHAPES:
        tokens = [[draw.randrange(4, VOCABULARY) for _ in range(length)] for length in (prompt, *branches)]
        rest = [Branch(token_ids=branch) for branch in tokens[1:]]
        groups.append(Group(sample=Sample(sample_id=f"tried/{prompt}", prompt=""), prompt_ids=tokens[0], branches=rest))
    return groups


# -- a small model of the same architecture ---------------------------------------------------------------------------


def _small_model(config: PreTrainedConfig, *, trust_remote_code: bool) -> tuple[PreTrainedConfig, PreTrainedModel]:
    """Return (a config of few layers, its model with eager attention and random weights large enough to matter)."""
    problem: Exception | None = None
    for width in ("few heads", "narrow", "wide"):
        try:
            small = small_config(config, width)
            with torch.device("meta"):
                size = _build(small, "eager", trust_remote_code).num_parameters()
            if size > MOST_PARAMETERS:
                raise ValueError(f"{size:,} parameters in a few layers")
            model = _build(small, "eager", trust_remote_code)
            _randomise(model)
            model(input_ids=torch.tensor([[4, 5, 6]]), use_cache=False)
            return small, model
        except Exception as error:  # too narrow for its own experts, heads or groups
            problem = problem or error
    assert problem is not None
    raise problem


def _build(config: PreTrainedConfig, attention: str | None, trust_remote_code: bool) -> PreTrainedModel:
    options: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    if attention is not None:
        options["attn_implementation"] = attention
    # from_config writes the attention that it chose into the config it is given.
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32, **options)
    return model.eval()


def _with_weights_of(
    model: PreTrainedModel, config: PreTrainedConfig, path: ForwardPath, trust_remote_code: bool
) -> PreTrainedModel:
    """Return the same model, run in another way."""
    other = _build(config, path.attention, trust_remote_code)
    other.load_state_dict(model.state_dict())
    other.forward_path = path
    return other


@torch.no_grad()
def _randomise(model: PreTrainedModel) -> None:
    """Give every parameter values that matter: fresh ones make attention nearly uniform and biases zero."""
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 1.5 / parameter.shape[-1] ** 0.5, generator=draw)
        else:
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)


def small_config(config: PreTrainedConfig, width: Width = "few heads") -> PreTrainedConfig:
    """Return the same architecture with few layers, tokens and positions."""
    small = copy.deepcopy(config)
    for part in _parts(small):
        _shrink(part, narrow=width != "wide")
        if width == "few heads":
            _take_heads(part)
    return small


def _take_heads(config: Any) -> None:
    """Leave four to seven heads, or as few as the groups of queries allow, and with them the width in proportion."""
    names = [
        next((name for name in options if isinstance(getattr(config, name, None), int)), None) for options in HEADS
    ]
    hidden, heads, shared = names
    if hidden is None or heads is None:
        return
    count = getattr(config, heads)
    common = math.gcd(count, getattr(config, hidden), getattr(config, shared) if shared else count)
    factor = max(part for part in range(1, common + 1) if common % part == 0 and (part == 1 or count // part >= 4))
    for name in {name for name in names if name is not None}:
        setattr(config, name, getattr(config, name) // factor)


def _parts(config: Any) -> list[Any]:
    """Return the config and those inside it: text, vision, attention."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(part for section in inner for part in _parts(section))]


def _shrink(config: Any, *, narrow: bool) -> None:
    values = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    depth = next((values[name] for name in LAYERS if isinstance(values.get(name), int)), None)
    kept = _layers_kept(values, depth)
    for name, value in values.items():
        smaller = _smaller(name, value, depth, kept, narrow)
        if smaller is not value:
            setattr(config, name, smaller)
    rope = values.get("rope_parameters")
    if isinstance(rope, dict):
        _shorten(config, rope)


LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "d_ff")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
WINDOWS = ("sliding_window", "attention_window_size", "attention_chunk_size", "window_size", "sliding_window_size")


def _layers_kept(values: dict[str, Any], depth: int | None) -> int:
    """Layers, from the first, that show every kind that the config names; at least two."""
    kept = 2
    for name, value in values.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], str | int):
            if len(value) == depth:  # the kind of each layer
                kept = max(kept, *(value.index(kind) + 1 for kind in set(value)))
            elif "block_types" in name or "layers_block_type" in name:  # a pattern that repeats
                kept = max(kept, len(value))
        elif isinstance(value, int) and ("period" in name or "interval" in name or "_every" in name):
            kept = max(kept, value)
    shared = bool(values.get("num_kv_shared_layers"))  # the last layers, which take keys and values of earlier ones
    return min(kept + shared, depth or kept)


def _smaller(name: str, value: Any, depth: int | None, kept: int, narrow: bool) -> Any:
    if isinstance(value, list | tuple) and len(value) == depth and kept != depth:
        return value[:kept]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if name in LAYERS or (name == "max_window_layers"):
        return min(value, kept)
    if name == "num_kv_shared_layers":
        return min(value, 1)
    if name.startswith("vocab_size"):
        return VOCABULARY
    if name.endswith("_token_id"):
        return value % 4
    if name in POSITIONS:
        return 64
    if name in WINDOWS:
        return min(value, WINDOW)
    if name.endswith("chunk_size"):  # of a recurrence: shorter sequences are padded to it
        return min(value, 2 * WINDOW)
    if narrow and any(width in name for width in WIDTHS):
        return min(value, 64)
    if narrow and name in EXPERTS:
        return min(value, 16)
    return value


def _shorten(config: Any, rope: dict[str, Any]) -> None:
    """Let a rotary embedding that depends on the length do so within the sequences that are tried."""
    changed = copy.deepcopy(rope)
    original = "original_max_position_embeddings"
    for section in [changed, *(value for value in changed.values() if isinstance(value, dict))]:
        if section.get("rope_type") == "dynamic":
            config.max_position_embeddings = REACH
        if section.get("rope_type") in ("dynamic", "longrope"):
            section[original] = REACH
            if hasattr(config, original):
                setattr(config, original, REACH)
    config.rope_parameters = changed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' advice, on one thread (fastest for tiny models), the caller's random state kept."""
    level, threads = transformers.logging.get_verbosity(), torch.get_num_threads()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            yield
    finally:
        transformers.logging.set_verbosity(level)
        torch.set_num_threads(threads)

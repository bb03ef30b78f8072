"""Whether a model can be used, from its files alone: what would end in a library's traceback minutes later is one
sentence here.

`check_models(recipe)` looks at every model that a recipe names, before the first process; jobs without such a recipe,
and serving, take `check_model` for one. Imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from troupe.config.models import RewardModelConfig
from troupe.errors import CheckpointError, ConfigError
from troupe.files import read_json
from troupe.runs.hub import hub_config
from troupe.runs.model_paths import locate

SCALAR = "ForSequenceClassification"
LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
"""What configs call the most tokens of a sequence."""
SCALED = ("linear", "dynamic")
"""Rotary embeddings whose `factor` stretches that number; others have it stretched already (as vLLM reads them,
too).
"""
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
"""Files of which every tokenizer has one, save those of bytes."""
BYTES_ALONE = ("ByT5Tokenizer", "PerceiverTokenizer", "CanineTokenizer")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
PUBLISHABLE_MIXTURES = ("mixtral",)
LFS = b"version https://git-lfs"
"""How the file begins that Git leaves where Git LFS was not there to fetch the real one."""


def check_models(config: Any) -> None:
    """Check every model that a training recipe names, before its first process; whether their mathematics fit the
    recipe,
    `troupe.training.preparation.require_fit` states.
    """
    model, longest = config.model, config.longest_sequence
    trust = getattr(model, "trust_remote_code", False)
    if model.type == "pretrained":
        writes = hasattr(config, "rollout") or hasattr(config, "generation")
        sampled = hasattr(config, "rollout") or getattr(config, "generation", None) is not None
        scalar = False if writes else None  # a reward model may go on from another
        path = check_model(model.path, longest=longest, sampled=sampled, scalar=scalar, trust_remote_code=trust)
        if sampled:
            require_publishable(f"model.path {path}", model_settings(path))
    critic, reward_model = getattr(config, "critic", None), getattr(config, "reward_model", None)
    if critic is not None and critic.start not in ("policy", "reward_model"):
        check_model(critic.start, field="critic.start", longest=longest, trust_remote_code=trust)
    if reward_model is not None:
        trust = reward_model.trust_remote_code
        check_model(reward_model.path, field="reward_model.path", longest=longest, scalar=True, trust_remote_code=trust)
    scorer = getattr(config, "perplexity_reward", None)
    if scorer is not None and scorer.path is not None:
        trust = scorer.trust_remote_code
        check_model(scorer.path, field="perplexity_reward.path", scalar=False, trust_remote_code=trust)


def check_answerer(named: str, field: str, config: Any) -> str:
    """Return `check_model` for a model that answers the held-out prompts of an evaluation's recipe."""
    trust, longest = config.trust_remote_code, config.longest_sequence
    return check_model(named, field=field, longest=longest, sampled=True, scalar=False, trust_remote_code=trust)


def check_model(
    named: str,
    *,
    field: str = "model.path",
    longest: tuple[int, str] | None = None,
    sampled: bool = False,
    scalar: bool | None = None,
    tokenizer: bool = True,
    trust_remote_code: bool = False,
) -> str:
    """Return the directory or hub name of the model that a person `named` in `field`, checked.

    `longest` is (tokens of the longest sequence, the fields they come from); `sampled`: vLLM runs it; `scalar`: whether
    it must have a scalar head (None: either will do); `tokenizer`: whether it needs one of its own. Raises
    CheckpointError or ConfigError with the cause in one sentence.
    """
    path = locate(named)
    where = f"{field} {path}"
    settings = model_settings(path, where=where)
    own_code = trust_remote_code and "auto_map" in settings
    if not own_code:
        require_model_type(where, settings)
    if scalar:
        require_scalar_head(where, settings)
    elif scalar is False and any(kind.endswith(SCALAR) for kind in kinds_of(settings)):
        raise ConfigError(f"{where} is a reward model and writes no text; give a language model")
    if sampled and not own_code:
        require_vllm_knows(where, settings)
    if longest is not None:
        require_length(where, settings, *longest)
    if tokenizer and Path(path).is_dir():
        require_tokenizer(where, Path(path), settings)
    return path


def model_settings(path: str, *, where: str | None = None) -> dict[str, Any]:
    """Return the config.json of a directory or hub name; CheckpointError where the directory is no whole model.

    `where` names the model in messages.
    """
    directory, where = Path(path), where or path
    if not directory.is_dir():
        return hub_config(path)
    settings = read_json(directory / "config.json")
    if not isinstance(settings, dict):
        raise CheckpointError(
            f"{where} has no readable config.json, so it is no model; give a run or a model's directory"
        )
    for file in weight_files(directory, where):
        _require_readable(file)
    return settings


def weight_files(directory: Path, where: str) -> list[Path]:
    """Return the files that hold a model's weights; CheckpointError where there are none, or not all that an index
    names.
    """
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    for name in INDICES:
        if not (directory / name).is_file():
            continue
        index = read_json(directory / name)
        if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
            raise CheckpointError(f"{directory / name} is not a whole index; copy or download it again")
        files = sorted(set(index["weight_map"].values()))
        missing = [file for file in files if not (directory / file).is_file()]
        if missing:
            raise CheckpointError(
                f"{where} lacks {len(missing)} of the {len(files)} files that its {name} names, {missing[0]} the "
                f"first; copy or "
                "download them"
            )
        return [directory / file for file in files]
    files = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("*.bin"))
    if not files:
        raise CheckpointError(f"{where} has no weights (*.safetensors); it was not copied or downloaded to its end")
    return files


def _require_readable(file: Path) -> None:
    with open(file, "rb") as stream:
        if stream.read(len(LFS)) == LFS:
            raise CheckpointError(f"{file} is a Git LFS pointer and not the file itself; run `git lfs pull` there")
    if file.suffix != ".safetensors":
        return
    try:
        with safe_open(file, "np"):  # reads the header and compares it with the file's size
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or was not copied to its end ({error}); copy or download it again"
        ) from None


def kinds_of(settings: Mapping[str, Any]) -> list[str]:
    """Return the classes that a config names."""
    return [str(kind) for kind in settings.get("architectures") or []]


def require_model_type(where: str, settings: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless transformers knows the config's `model_type`."""
    known = settings.get("model_type")
    if not known:
        raise CheckpointError(
            f"the config.json of {where} has no model_type, so nothing says what architecture it is; copy the one of "
            f"its base "
            'model, or add it ("model_type": "llama", say)'
        )
    # Importing transformers' table imports torch, and it is text.
    if f'("{known}", ' in _source_of("transformers", "models/auto/auto_mappings.py") or known == "gpt-sw3":
        return
    if "auto_map" in settings:
        raise ConfigError(
            f"{where} comes with code of its own; set trust_remote_code: true beside its path if you trust it"
        )
    raise ConfigError(
        f"{where} has model_type {known!r}, which the installed transformers does not know; give another model"
    )


def require_scalar_head(where: str, settings: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the model has one number as its output, going by its config.json."""
    kinds = kinds_of(settings)
    if not any(kind.endswith(SCALAR) for kind in kinds):
        raise CheckpointError(
            f"{where} is a {', '.join(kinds) or 'model of unknown kind'} and has no trained scalar head; train one "
            f"with "
            "jobs/train_reward_model.py"
        )
    labels = settings.get("num_labels") or len(settings.get("id2label") or (0, 1))  # two where the config says nothing
    if labels != 1:
        raise CheckpointError(
            f"{where} has {labels} labels, a reward model has one; use a model trained with num_labels 1"
        )


def require_vllm_knows(where: str, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError unless vLLM has the architecture in its table."""
    kinds = kinds_of(settings)
    # Importing vLLM takes ten seconds and a gibibyte, and its table is text.
    table = _source_of("vllm", "model_executor/models/registry.py")
    if not any(f'"{kind}"' in table for kind in kinds):
        raise ConfigError(
            f"{where} is a {', '.join(kinds) or 'model of unnamed architecture'}, which the installed vLLM does not "
            f"know; "
            "take a model of its list (vllm.ai, supported models)"
        )


def _source_of(package: str, file: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"{package} is not installed; `make install` does it")
    return (Path(spec.origin).parent / file).read_text(encoding="utf-8")


def require_publishable(where: str, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a mixture of experts whose weights were never seen to reach running engines."""
    inner = settings.get("text_config") or settings
    experts = max((inner.get(key) or 0 for key in EXPERTS), default=0)
    if experts > 1 and settings.get("model_type") not in PUBLISHABLE_MIXTURES:
        raise ConfigError(
            f"{where} is a mixture of experts ({settings.get('model_type')}), and of these only "
            f"{', '.join(PUBLISHABLE_MIXTURES)} can be "
            "given to engines while it is trained; use a dense model, or train it without held-out generation"
        )


def longest_of(settings: Mapping[str, Any]) -> int | None:
    """Most tokens of a sequence that a model's positions reach; None where its config does not say."""
    inner = settings.get("text_config") or settings
    known = [inner[key] for key in LENGTHS if isinstance(inner.get(key), int)]
    if not known:
        return None
    rope = inner.get("rope_parameters") or inner.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type"))
    return int(min(known) * (rope.get("factor") or 1)) if kind in SCALED else min(known)


def require_length(where: str, settings: Mapping[str, Any], tokens: int, fields: str) -> None:
    """Raise ConfigError where the model's positions do not reach `tokens`, which `fields` ask for."""
    longest = longest_of(settings)
    if longest is not None and tokens > longest:
        raise ConfigError(f"{fields} ({tokens}) must be at most what {where} takes ({longest} tokens); lower it")


def require_tokenizer(where: str, directory: Path, settings: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the directory has a tokenizer, and the model an embedding for each of its tokens."""
    own = read_json(directory / "tokenizer_config.json") or {}
    there = any(next(directory.glob(pattern), None) for pattern in VOCABULARIES)
    if not there and own.get("tokenizer_class") not in BYTES_ALONE:
        raise CheckpointError(
            f"{where} has no tokenizer; copy tokenizer.json and tokenizer_config.json of its base model there"
        )
    rows = (settings.get("text_config") or settings).get("vocab_size")
    tokens = tokens_of(directory, own)
    if rows is None or not tokens or max(tokens) < rows:
        return
    beyond = {number: token for number, token in tokens.items() if number >= rows}
    if set(beyond.values()) <= {_content(own.get("pad_token"))}:
        return  # prompts and answers have none
    raise CheckpointError(
        f"{where} has embeddings for {rows} tokens, and its tokenizer knows {len(beyond)} more "
        f"({', '.join(map(repr, list(beyond.values())[:3]))}); "
        "enlarge the model (model.resize_token_embeddings(len(tokenizer)), then save_pretrained), or take them out "
        "of the tokenizer"
    )


def tokens_of(directory: Path, own: Mapping[str, Any]) -> dict[int, str]:
    """Id -> token, of the files that can be read without the tokenizer's own code."""
    tokens: dict[int, str] = {}
    file = directory / "tokenizer.json"
    if file.is_file():
        whole = read_json(file)
        if not isinstance(whole, dict):
            raise CheckpointError(f"{file} is not whole; copy or download it again")
        vocabulary = whole.get("model", {}).get("vocab") or {}
        pairs = (
            vocabulary.items()
            if isinstance(vocabulary, dict)
            else ((piece[0], number) for number, piece in enumerate(vocabulary))
        )
        tokens |= {number: token for token, number in pairs}
        tokens |= {token["id"]: token["content"] for token in whole.get("added_tokens") or []}
    added = read_json(directory / "added_tokens.json") or {}
    tokens |= {number: token for token, number in added.items()}
    decoder = own.get("added_tokens_decoder") or {}
    return tokens | {int(number): str(_content(token)) for number, token in decoder.items()}


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token


def locate_reward_model(settings: RewardModelConfig) -> RewardModelConfig:
    """Return the settings with the directory of the model's checkpoint; refused without a trained head, before
    anything starts.
    """
    path = check_model(
        settings.path, field="reward_model.path", scalar=True, trust_remote_code=settings.trust_remote_code
    )
    return settings.model_copy(update={"path": path})

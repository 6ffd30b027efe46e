"""The files of a checkpoint: its folder here or on the hub, its configuration, tokenizer, weights and plain causal LM."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from latent_tts.backbones.weights import check_finite, check_tied, check_wrapped, tied_keys
from latent_tts.errors import UserError


def resolve_folder(name_or_folder: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint, downloading it where the name is a hub id.

    Args:
        name_or_folder: A folder, or a Hugging Face hub id, which can have its revision behind it: ``owner/name@revision``.
        revision: Commit, tag or branch of a hub id; ``None`` takes the newest commit.

    Raises:
        UserError: The folder is not a checkpoint or has no revisions, two revisions are given, or the hub does not have (or
            cannot be asked for) the id.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        if revision is not None:
            raise UserError(
                f"{folder} is a folder here, which has no revision {revision!r}: drop it, or give a hub id."
            )
        if not (folder / "config.json").exists():
            raise UserError(
                f"{folder} holds no config.json: name the folder that holds config.json and model.safetensors."
            )
        return folder
    if folder.is_file():
        raise UserError(f"{folder} is a file: name the folder that holds config.json and model.safetensors.")
    name, _, behind = str(name_or_folder).partition("@")  # in no hub id
    if behind and revision is not None:
        raise UserError(f"{name_or_folder} names a revision, and so does revision {revision!r}: give one of the two.")
    revision = behind or revision
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or str(name_or_folder).endswith("@"):
        raise UserError(
            f"There is no folder {str(name_or_folder)!r}: check the path, or give a hub id of the form owner/name."
        )
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen kinds, offline ones among them
        raise UserError(
            f"There is no folder {name!r} here, and the hub could not give {name!r}"
            f"{'' if revision is None else f' at revision {revision!r}'} ({type(error).__name__}): "
            "check the name and the network, or download it first and pass the folder."
        ) from error


def commit_of(folder: Path) -> str | None:
    """The commit that a folder was downloaded from the hub at, in hex; None for any other folder."""
    name = folder.resolve().name
    return name if folder.resolve().parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", name) else None


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder.

    Raises:
        UserError: The folder holds none.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    if (folder / "tokenizer.json").exists():
        try:
            # Read as it stands: the class named in tokenizer_config.json may rebuild the tokenizer with other rules.
            tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
            return tokenizer
        except Exception as error:  # the library's reader raises bare exceptions
            raise UserError(
                f"The tokenizer of {folder} cannot be read ({first_line(error)}): copy tokenizer.json and tokenizer_config.json "
                "of the model into it again."
            ) from error
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"{folder} holds no tokenizer: copy tokenizer.json and tokenizer_config.json into it."
        ) from error


def read_safetensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's ``*.safetensors`` files, by key.

    Raises:
        UserError: No such file, one that is cut off or malformed, or an index that names files elsewhere.
    """
    check_index(folder)
    files = sorted(folder.glob("*.safetensors"))
    files = [file for file in files if not file.name.startswith("expected")]
    if not files:
        raise UserError(
            f"{folder} holds no .safetensors file; other formats run code when they are loaded and are not read."
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                weights |= {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dict)
        except Exception as error:
            raise UserError(f"{file} cannot be read as safetensors ({error}): is the download complete?") from error
    return weights


def check_index(folder: Path) -> None:
    """Refuses an index of shards that names anything but files beside it: transformers would read them wherever they are.

    Raises:
        UserError: Names the first such entry; or the index cannot be read.
    """
    for file in sorted(folder.glob("*.safetensors.index.json")):
        named = read_json(file).get("weight_map")
        for name in named.values() if isinstance(named, dict) else [named]:
            if not isinstance(name, str) or re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) is None:
                raise UserError(
                    f"{file} names {str(name)[:80]!r} as a shard, which is no .safetensors file beside it: download the "
                    "checkpoint again from a source that you trust."
                )


def read_config(folder: Path) -> Any:
    """The configuration of a checkpoint folder.

    Raises:
        UserError: It cannot be read, or is of a family that the installed transformers does not have.
    """
    found = read_json(folder / "config.json")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a field of a wrong type raises what the family's own checks raise
        named = found.get("model_type")
        raise UserError(
            f"{folder / 'config.json'}, of model_type {named!r}, is no configuration that the installed transformers reads "
            f"({first_line(error)}); docs/models.md lists families that serve."
        ) from error


def first_line(error: BaseException) -> str:
    """What an error of somebody else says, in a few words."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


def made_with_fused_activations(folder: Path, make: Callable[[Any], PreTrainedModel]) -> PreTrainedModel:
    """A model that ``make`` makes of the config of a folder, with GPT-2's activation in transformers' fused form.

    It is the same function: ``gelu_new`` in seven element-wise operations makes a training step on a CPU 15 % slower. The
    model's config names it as the folder does, and so does what is exported.
    """
    config = read_config(folder)
    unfused = [field for field in ("activation_function", "hidden_act") if getattr(config, field, None) == "gelu_new"]
    for field in unfused:
        setattr(config, field, "gelu_pytorch_tanh")
    try:
        model = make(config)
    except (OSError, UserError, SafetensorError):
        raise
    except Exception as error:  # whatever a model's constructor makes of a configuration that nobody has tried
        raise UserError(
            f"No model can be made of {folder / 'config.json'} ({first_line(error)}); docs/models.md lists families that serve."
        ) from error
    for field in unfused:
        setattr(model.config, field, "gelu_new")
    return model


def load_causal_lm(folder: Path) -> PreTrainedModel:
    """The causal LM of a folder, in float32.

    Raises:
        UserError: It cannot be read, or weights are missing, not finite, or at odds with the config.
    """
    check_index(folder)
    info: dict[str, Any] = {}

    def make(config: Any) -> PreTrainedModel:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        model: PreTrainedModel = loaded[0]
        info.update(loaded[1])
        return model

    try:
        model = made_with_fused_activations(folder, make)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The model to start from, {str(folder)!r}, cannot be loaded ({first_line(error)}): is the download complete?"
        ) from error
    check_wrapped([str(key) for key in info["unexpected_keys"]], str(folder))
    check_tied(
        _stored(folder, {key for pair in tied_keys(model).items() for key in pair}), tied_keys(model), str(folder)
    )
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise UserError(f"The weights of {str(folder)!r} are incomplete: {', '.join(lacking)}.")
    check_finite(model.state_dict(), str(folder))
    return model


def _stored(folder: Path, keys: set[str]) -> dict[str, Tensor]:
    """Some of the tensors of a folder, as far as they are there."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            found |= {key: handle.get_tensor(key) for key in keys.intersection(handle.keys())}
    return found


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}): is the download complete?") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold an object with named fields, not {str(content)[:40]!r}.")
    return content

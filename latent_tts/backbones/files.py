"""The files of a checkpoint: its folder here or on the hub, its configurations and tokenizer, and a model of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

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
            return _of_any_machine(PreTrainedTokenizerFast.from_pretrained(folder))
        except Exception as error:  # the library's reader raises bare exceptions
            raise UserError(
                f"The tokenizer of {folder} cannot be read ({in_short(error)}): copy tokenizer.json and tokenizer_config.json "
                "of the model into it again."
            ) from error
    try:
        return _of_any_machine(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    except Exception as error:
        raise UserError(
            f"{folder} holds no tokenizer: copy tokenizer.json and tokenizer_config.json into it."
        ) from error


def _of_any_machine(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Without how it was read (offline or not), which transformers would write into tokenizer_config.json when it is saved."""
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def read_config(folder: Path) -> Any:
    """The configuration of a checkpoint folder.

    Raises:
        UserError: It cannot be read, has no positions, is of quantized weights, or of a family that the installed transformers
            does not have.
    """
    found = read_json(folder / "config.json")
    if found.get("quantization_config"):
        raise UserError(
            f"{folder / 'config.json'} has a quantization_config: quantized weights are not read, so take the model in float32, "
            "float16 or bfloat16."
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a field of a wrong type raises what the family's own checks raise
        named = found.get("model_type")
        raise UserError(
            f"{folder / 'config.json'}, of model_type {named!r}, is no configuration that the installed transformers reads "
            f"({in_short(error)}); docs/models.md lists families that serve."
        ) from error
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and positions < 1:
        raise UserError(f"{folder / 'config.json'} gives the model {positions} positions: it must be at least 1.")
    return config


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """The `generation_config.json` of a folder, of which stop tokens are used; None where there is none.

    Raises:
        UserError: It cannot be read.
    """
    file = folder / "generation_config.json"
    if not file.exists():
        return None
    read_json(file)
    try:
        return GenerationConfig.from_pretrained(folder)
    except Exception as error:  # a field of a wrong type raises what the library's own checks raise
        raise UserError(
            f"{file} is no configuration that transformers reads ({in_short(error)}): take it away."
        ) from error


def in_short(error: BaseException) -> str:
    """What an error of somebody else says, in a few words on one line."""
    said = " ".join(str(error).split())
    return (
        f"{type(error).__name__}: {said if len(said) <= 180 else f'{said[:177]}...'}" if said else type(error).__name__
    )


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
            f"No model can be made of {folder / 'config.json'} ({in_short(error)}); docs/models.md lists families that serve."
        ) from error
    for field in unfused:
        setattr(model.config, field, "gelu_new")
    return model


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


def number_field(config: Any, name: str, default: float, least: float, whole: bool = False) -> float:
    """A number of the configuration that a kind keeps beside the causal LM's own.

    Raises:
        UserError: It is no finite number, smaller than `least`, or a fraction of one that has to be whole.
    """
    value = getattr(config, name, default)
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not is_number or not least <= value < math.inf:
        what = "a whole number" if whole else "a finite number"
        raise UserError(f"config.json gives {name} as {value!r:.60}: it must be {what}, and at least {least}.")
    return float(value)

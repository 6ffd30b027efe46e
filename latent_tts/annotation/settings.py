"""What an annotation was made with: everything its content depends on, typed, as it stands in `settings.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from latent_tts.answers import AnswerRule
from latent_tts.errors import UserError

SETTINGS_FILE = "settings.json"

LatentDtype = Literal["float32", "float16", "bfloat16"]
LastValue = Literal["own", "estimate"]


@dataclass(frozen=True)
class AnnotationOptions:
    """Options of the annotation itself; those of an older folder that does not name one are the defaults."""

    last: LastValue = "own"
    """Value of a rollout's last prefix: the correctness of its own answer, or a Monte-Carlo estimate."""
    answer_rule: AnswerRule = "tolerance"
    """When an answer equals the gold answer."""
    precision: str = "32-true"
    """The trainer's precision."""
    continue_uniform: bool = True
    """Whether problems whose rollouts are all right or all wrong got continuations too."""


@dataclass(frozen=True)
class AnnotationSettings:
    """Everything that the content of an annotation depends on; two runs may share a folder only when all of it is equal."""

    backbone_fingerprint: str
    """`LatentBackbone.fingerprint()`: sha256 of configuration, weights and tokenizer."""
    backbone_kind: str
    """coconut, codi or colar."""
    hidden_size: int
    """D."""
    num_latents: int
    """T, for CoLaR the maximum."""
    num_rollouts: int
    """N."""
    num_continuations: int
    """M; 0 where prefixes were not valued (only final correctness is known)."""
    sampler: Mapping[str, object]
    """Name and parameters, such as {"name": "AdditiveGaussianNoise", "sigma": 0.5}."""
    seed: int
    """Seed of every random draw."""
    max_answer_tokens: int
    """Where answers were cut off."""
    data: str
    """The data's options, as JSON."""
    latent_dtype: LatentDtype = "float32"
    """How latents are stored."""
    extra: AnnotationOptions = field(default_factory=AnnotationOptions)
    """Options of the annotation itself."""

    def to_json(self) -> dict[str, Any]:
        """As stored. Options that are of a later date than the format are left out where they have their defaults."""
        stored: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples read back as lists
        if self.extra.continue_uniform:
            del stored["extra"]["continue_uniform"]
        return stored

    @classmethod
    def from_json(cls, stored: Any) -> AnnotationSettings:
        """The settings that `to_json` gave.

        Raises:
            ValueError: Names the field that is missing, unknown, or of another type.
        """
        values = dict(_object("the settings", stored))
        if "extra" in values:
            extra = _object("extra", values["extra"])
            values["extra"] = AnnotationOptions(**_checked(AnnotationOptions, extra))
        return cls(**_checked(cls, values))

    def digest(self) -> str:
        """16 hex characters that stand in the metadata of every shard."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: AnnotationSettings) -> list[tuple[str, object, object]]:
        """The settings in which two runs differ: name, own value, the other's.

        An option of the data that only one of them names is false for the other one, which is older than the option.
        """
        mine, theirs = _flat(self.to_json()), _flat(other.to_json())
        names = [*mine, *(name for name in theirs if name not in mine)]
        pairs = [(name, _value(mine, name, theirs), _value(theirs, name, mine)) for name in names]
        return [pair for pair in pairs if pair[1] != pair[2]]


def _value(own: Mapping[str, object], name: str, other: Mapping[str, object]) -> object:
    """A setting of one run; where it names none, the option's default, which of a switch of the data is false."""
    if name in own:
        return own[name]
    switch = name.startswith("data.") and isinstance(other.get(name), bool)
    return False if switch else asdict(AnnotationOptions()).get(name)


def read_settings(folder: Path) -> AnnotationSettings:
    """The settings of a folder of annotations.

    Raises:
        UserError: There are none, or they cannot be read.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} holds no annotations ({SETTINGS_FILE} is missing); run the annotation with this output folder"
        )
    try:
        return AnnotationSettings.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not readable as annotation settings ({error}); annotate into another folder"
        ) from error


def _flat(stored: dict[str, Any]) -> dict[str, object]:
    """One level of names: those of the options stand beside the others, those of the data behind `data.`."""
    flat = {**{name: value for name, value in stored.items() if name != "extra"}, **stored["extra"]}
    with suppress(ValueError, RecursionError):
        data = json.loads(stored["data"])
        if isinstance(data, dict):
            flat |= {f"data.{name}": value for name, value in data.items()}
            del flat["data"]
    return flat


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, found {_shown(value)}")
    return value


def _checked(cls: type[Any], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of a dataclass' fields, each of the field's type."""
    types = get_type_hints(cls)
    if unknown := [name for name in values if name not in types]:
        raise ValueError(f"unknown field {unknown[0]!r}")
    for each in fields(cls):
        required = each.default is each.default_factory  # both are "missing"
        if each.name not in values:
            if required:
                raise ValueError(f"field {each.name!r} is missing")
        elif not _fits(values[each.name], types[each.name]):
            raise ValueError(f"field {each.name!r} cannot be {_shown(values[each.name])}")
    return values


def _fits(value: Any, expected: Any) -> bool:
    if choices := get_args(expected) if expected not in (Mapping[str, object],) else ():
        return isinstance(value, str) and value in choices
    if expected == Mapping[str, object]:
        return isinstance(value, dict)
    return isinstance(value, expected) and not (expected is int and isinstance(value, bool))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."

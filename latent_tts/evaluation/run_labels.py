"""What runs are called beside each other: names from their folders, labels from the settings in which they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MODELS = ("backbone", "reward_model", "written")
_SAID_BY_ROWS = ("model.aggregations", "model.search", "model.keep_latents")


def run_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the folders' paths, as many as tell them apart.

    >>> run_names([Path("a/gsm8k"), Path("b/gsm8k")])
    ['a/gsm8k', 'b/gsm8k']
    """
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def run_labels(described: Sequence[Mapping[str, Any]]) -> list[str]:
    """A phrase for each run, such as `sigma=0.3, N=16`; empty where two would read alike.

    Args:
        described: The contents of their `run.json`.
    """
    prints = _fingerprints(described)
    flat = [_settings(run, prints) for run in described]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    differing = [key for key in keys if len({json.dumps(one.get(key)) for one in flat}) > 1]
    short = [_short(key, differing) for key in differing]
    labels = [
        ", ".join(f"{name}={_shown(one[key])}" for key, name in zip(differing, short, strict=True) if key in one)
        for one in flat
    ]
    return labels if len(set(labels)) == len(labels) else [""] * len(labels)


def _settings(run: Mapping[str, Any], prints: Mapping[str, set[str]]) -> dict[str, Any]:
    """The settings with models by their names; a name that stands for several models has its fingerprint behind it."""
    found = {key: value for key, value in run["settings"].items() if key not in _SAID_BY_ROWS}
    for model in _MODELS:
        fingerprint = found.pop(f"model.{model}.fingerprint", None)
        if fingerprint is not None:
            name = _name(run, model)
            found[f"model.{model}"] = f"{name} ({fingerprint[:6]})" if len(prints[name]) > 1 else name
    return found


def _fingerprints(described: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Of all models that go by a name."""
    found: dict[str, set[str]] = {}
    for run in described:
        for model in _MODELS:
            if fingerprint := run["settings"].get(f"model.{model}.fingerprint"):
                found.setdefault(_name(run, model), set()).add(fingerprint)
    return found


def _name(run: Mapping[str, Any], model: str) -> str:
    return Path((run["evaluated"].get(model) or {}).get("name") or "given in Python").name


def last_words(key: str, keys: Sequence[str]) -> str:
    """The last words of an option's name, as many as tell it from the others.

    >>> last_words("model.seed", ["model.seed", "data.seed"])
    'model.seed'
    """
    words = key.split(".")
    for length in range(1, len(words) + 1):
        tail = words[-length:]
        if sum(other.split(".")[-length:] == tail for other in keys) == 1:
            break
    return ".".join(tail)


def _short(key: str, keys: Sequence[str]) -> str:
    name = last_words(key, keys)
    return {"num_rollouts": "N", "sampler.name": "sampler", "name": "sampler"}.get(name, name)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

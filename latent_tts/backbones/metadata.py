"""What a published layout leaves implicit, as `latent_tts.json` beside the weights says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latent_tts.backbones.files import read_json
from latent_tts.errors import UserError

METADATA_FILE = "latent_tts.json"
_FIELDS: dict[str, tuple[type, str]] = {
    "kind": (str, "a name"),
    "num_latents": (int, "a whole number"),
    "prompt_form": (str, "text"),
    "base_fingerprint": (str, "text"),  # of adapters
    "head": (str, "a name"),  # of reward models, as all below
    "frozen": (bool, "true or false"),
    "backbone_fingerprint": (str, "text"),
}


def read_metadata(folder: Path) -> dict[str, Any]:
    """The fields of a folder's `latent_tts.json`, each of its type or None; none where there is no such file.

    Raises:
        UserError: It cannot be read, or has a field that is unknown or of another type.
    """
    file = folder / METADATA_FILE
    metadata = read_json(file) if file.exists() else {}
    for name, value in metadata.items():
        if name not in _FIELDS:
            raise UserError(
                f"{file} has the field {name!r}, which this version does not know; it knows {', '.join(_FIELDS)}."
            )
        wanted, described = _FIELDS[name]
        if value is not None and type(value) is not wanted:  # true is no number
            raise UserError(f"{file} gives {name} as {value!r:.60}: it must be {described}.")
    form = metadata.get("prompt_form")
    if form is not None and "{question}" not in form:
        raise UserError(f"{file} gives the prompt form {form!r:.60}, which has no {{question}} to be filled in.")
    return metadata

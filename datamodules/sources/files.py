"""Where the file of a source lies: where its name says, or in the data folder where the name begins with `data/`."""

import os
from pathlib import Path

from latent_tts.errors import UserError

DATA_FOLDER_VARIABLE = "LATENT_TTS_DATA"
_DATA = "data"  # first part of the names of files in the data folder, and that folder's own name where nothing sets it


def data_folder() -> Path:
    """The folder of the sets that recipes name, such as `data/gsm8k/test.jsonl`."""
    return Path(os.environ.get(DATA_FOLDER_VARIABLE) or _DATA)


def source_path(source: str) -> Path:
    """The file or folder that a source names, whether it is there or not."""
    path = Path(source)
    return data_folder().joinpath(*path.parts[1:]) if path.parts[:1] == (_DATA,) else path


def require_file(source: str) -> Path:
    """The path of a source that is there.

    Raises:
        UserError: It isn't; the sentence names the setting that decides where it is looked for.
    """
    path = source_path(source)
    if path.exists():
        return path
    if path == Path(source) and Path(source).parts[:1] != (_DATA,):
        raise UserError(f"there is no file {str(path)!r}: check the path, which starts from {str(Path.cwd())!r}")
    raise UserError(
        f"there is no file {str(path)!r}: {source!r} is looked for in the folder that {DATA_FOLDER_VARIABLE} names "
        f"(now {str(data_folder())!r}), and docs/data.md says where each set comes from"
    )

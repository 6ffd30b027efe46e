"""Builds and loads the C++ of this folder, once per machine, where there is a compiler for it.

Nothing depends on it: without a compiler, on another system or another processor, everything runs as torch has it.
Set ``LATENT_TTS_KERNELS=off`` to have it so.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SWITCH = "LATENT_TTS_KERNELS"
SOURCES = Path(__file__).parent
# Undefined symbols are allowed on purpose: OpenMP comes from the library that torch has loaded, so that both share their threads.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-fopenmp")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """The functions of this folder, and what they were built for.

    Attributes:
        lanes: Numbers in a vector of float32.
        has_tiles: Whether the processor multiplies tiles of bfloat16 (AMX).
    """

    functions: ctypes.CDLL
    lanes: int
    has_tiles: bool

    def run(self, name: str, dtype: torch.dtype, *arguments: Tensor | float | tuple[int, ...] | None) -> None:
        """Calls a function in the version for a type; integers and tuples of them are passed as int64, floats as float32."""
        function = getattr(self.functions, f"{str(dtype).removeprefix('torch.')}_{name}")
        function(*map(_as_argument, arguments))

    @classmethod
    def load(cls, file: Path) -> Kernels:
        functions = ctypes.CDLL(str(file))
        return cls(functions, functions.lanes(), bool(functions.has_bfloat16_tiles()))


def _as_argument(value: Tensor | float | tuple[int, ...] | None) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, tuple):
        return (ctypes.c_int64 * len(value))(*value)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    return value if value is None else ctypes.c_float(value)


@cache
def kernels() -> Kernels | None:
    """The kernels; None where this machine has no use for them, or no compiler."""
    if os.environ.get(SWITCH, "on").lower() in ("off", "0", "false") or not _is_suitable():
        return None
    compiler = shlex.split(os.environ.get("CXX", "")) or [name for name in ("g++", "c++") if shutil.which(name)][:1]
    if not compiler:
        log.info("No C++ compiler (g++) was found: the products of rollouts go through torch, which is slower.")
        return None
    try:
        return Kernels.load(build(*compiler))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        log.warning(
            "The kernels could not be built with %s; torch computes in their place. %s", " ".join(compiler), reason
        )
        return None


def _is_suitable() -> bool:
    """Whether this is what the kernels are written for: Linux, and a processor with AVX2 or AVX-512."""
    instructions = torch.backends.cpu.get_cpu_capability()
    return sys.platform == "linux" and platform.machine() == "x86_64" and instructions in ("AVX2", "AVX512")


def build(*compiler: str, flags: tuple[str, ...] = FLAGS) -> Path:
    """The file of the compiled library, from the cache of an earlier process if sources, compiler and processor are the same.

    Args:
        compiler: Its command, in words.
        flags: What it is told.

    Raises:
        subprocess.CalledProcessError: The compiler refuses.
        OSError: The compiler is not there.
    """
    sources = sorted(SOURCES.glob("*.cpp"))
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(version + " ".join(flags).encode() + _processor().encode())
    for file in (*sources, *sorted(SOURCES.glob("*.h"))):
        digest.update(file.read_bytes())
    library = _cache_folder() / f"kernels-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:  # processes that build at once must not meet
        objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]
        for source, target in zip(sources, objects, strict=True):
            _run(*compiler, *flags, "-c", str(source), "-o", target)
        _run(*compiler, "-shared", *objects, "-o", str(Path(folder) / library.name))
        os.replace(Path(folder) / library.name, library)
    return library


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)


def _processor() -> str:
    """What the processor can do: a home folder may be shared by machines of several kinds."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith("flags")), platform.processor())


def _cache_folder() -> Path:
    """Where the library is kept: the user's cache, or a folder of the user's own among the temporary files.

    Raises:
        OSError: There is no such folder, or it belongs to somebody else, whose code would be loaded.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latent_tts"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # not to be written to, or no home at all
        pass
    folder = Path(tempfile.gettempdir()) / f"latent_tts-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user.")
    return folder

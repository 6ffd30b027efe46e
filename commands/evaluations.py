"""Commands of this project one after the other, each a process of its own: what a study and a sweep share."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from latent_tts.errors import StoppedBySignal, UserError

ROOT = Path(__file__).parents[1]


def as_typed(arguments: Sequence[str]) -> str:
    """The command of an evaluation, as one would type it."""
    return python_as_typed(["evaluate.py", *arguments])


def python_as_typed(words: Sequence[str]) -> str:
    """A command of Python, as one would type it."""
    return shlex.join(["python", *words])


def run_evaluation(name: str, arguments: Sequence[str]) -> None:
    """Runs `evaluate.py` to its end; see `run_python`."""
    run_python(name, ["evaluate.py", *arguments])


def run_python(name: str, words: Sequence[str]) -> None:
    """Runs a command to its end; a signal that stops this process is handed on, and the command closes its files first.

    Args:
        name: Of what is run.
        words: A script of this project or `-m` and a module, and its arguments.

    Raises:
        UserError: It ended with an error, which it has told.
    """
    first, *rest = words
    script = first if first == "-m" else str(ROOT / first)
    with subprocess.Popen([sys.executable, script, *rest]) as process:
        try:
            code = process.wait()
        except StoppedBySignal as stopped:
            process.send_signal(stopped.signum)
            process.wait()
            raise
    if code:
        raise UserError(f"The run {name} ended with exit code {code}; the same command goes on with it.")

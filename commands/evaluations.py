"""Several evaluations one after the other, each a process of its own: what a study and a sweep share."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from latent_tts.errors import StoppedBySignal, UserError

SCRIPT = Path(__file__).parents[1] / "evaluate.py"


def as_typed(arguments: Sequence[str]) -> str:
    """The command of an evaluation, as one would type it."""
    return shlex.join(["python", "evaluate.py", *arguments])


def run_evaluation(name: str, arguments: Sequence[str]) -> None:
    """Runs `evaluate.py` to its end; a signal that stops this process is handed on, and the evaluation closes its files first.

    Raises:
        UserError: It ended with an error, which it has told.
    """
    with subprocess.Popen([sys.executable, str(SCRIPT), *arguments]) as process:
        try:
            code = process.wait()
        except StoppedBySignal as stopped:
            process.send_signal(stopped.signum)
            process.wait()
            raise
    if code:
        raise UserError(f"The run {name} ended with exit code {code}; the same command goes on with it.")

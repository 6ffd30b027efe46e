"""What both entry points do around their run: bad input ends as one line on stderr and exit code 2, never as a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from latent_tts.errors import UserError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # the shell's 128 + SIGINT


def main_guard(run: Callable[[], None]) -> int:
    """Runs an entry point and returns its exit code: 0, 2 for bad input (one line on stderr), 130 for Ctrl-C.

    Any other exception is a defect of the program and keeps its traceback.
    """
    try:
        run()
    except UserError as error:
        report_error(one_line(error))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        report_error("interrupted; the same command goes on from here")
        return EXIT_INTERRUPTED
    return 0


def report_error(sentence: str) -> None:
    """Prints `error: sentence` on stderr, once however many processes a run has."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        print(f"error: {sentence}", file=sys.stderr, flush=True)


def one_line(error: UserError) -> str:
    """The error's sentence; a data-loader worker wraps it in its own traceback, whose last paragraph is the sentence."""
    text = str(error).strip()
    marker = f"{UserError.__module__}.{UserError.__qualname__}: "
    return " ".join(text.rpartition(marker)[2].split())

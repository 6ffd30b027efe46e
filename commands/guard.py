"""What every command does around its run: bad input ends as one line and exit code 2, a signal with what to do next, never as a
traceback."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from callbacks.signals import STOP
from commands.ranks import rank, report_error
from commands.requeue import request_requeue
from latent_tts.errors import RankDied, StoppedBySignal, UserError
from latent_tts.files.whole import no_room

_LOOK_EVERY = 0.5  # seconds


def main_guard(run: Callable[[], object], ends_process: bool = False) -> int:
    """Runs an entry point and returns its exit code: 0, 2 for bad input, 130 after Ctrl-C, 143 after other signals.

    Where SLURM runs the job and the signal is one after which it is wanted, the job is given back to the queue. Any other
    exception is a defect of the program and keeps its traceback.

    Args:
        run: The work.
        ends_process: Whether the process has nothing to do afterwards.
    """
    write_in_any_encoding()
    try:
        with STOP.listen(ends_process), threads_without_room():
            STARTER.watch()
            run()
            STOP.release()  # asked to stop in its last moments: the work is done, and nobody is told that it was not
    except UserError as error:
        report_error(one_line(error), everywhere=True)
        return error.exit_code
    except StoppedBySignal as stopped:
        return end_stopped(stopped)
    except Exception as error:
        if (code := end_of(error)) is None:
            raise
        return code
    return 0


def end_stopped(stopped: StoppedBySignal, by: str = "") -> int:
    """Says that a signal has ended the run, and has SLURM run it again where that is wanted; the exit code."""
    report_error(stopped.sentence + by)
    request_requeue(stopped.signum)
    return int(str(stopped.code))


def end_of(error: Exception) -> int | None:
    """Says why the run ends with an error that is no defect of the program; the exit code, None where it is one."""
    if (signum := STOP.was_raised) is not None:  # what it interrupted, such as an import in C, made another error of it
        return end_stopped(StoppedBySignal(signum), f" ({type(error).__name__}: {one_line(error)})")
    if STARTER.has_died():  # whatever went wrong, the cause is that a rank is missing
        return RankDied.exit_code
    if is_lost_connection(error):
        if rank():  # rank 0 ends, and says why
            print(f"rank {rank()} stops: its connection to another rank was lost", file=sys.stderr, flush=True)
        else:  # srun or torchrun has started the others and says which of them has died
            report_error("another rank or its node has died, see the lines around; the same command goes on from here")
        return RankDied.exit_code
    if (why := no_room(error)) is not None:
        report_error(f"cannot go on ({why}): make room or mend that, and the same command goes on", everywhere=True)
        return UserError.exit_code
    return None


@contextmanager
def threads_without_room() -> Iterator[None]:
    """What cannot be written by a thread, such as that of TensorBoard's files, ends the run with the sentence, not a traceback.

    The thread's error reaches the run where it next asks the thread for something; where it never does, at its end.
    """
    before, failed = threading.excepthook, list[BaseException]()

    def hook(thread: threading.ExceptHookArgs) -> None:
        if thread.exc_value is None or no_room(thread.exc_value) is None:
            before(thread)
        else:
            failed.append(thread.exc_value)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
    if failed:
        raise failed[0]


# As the libraries of collective calls (gloo, NCCL) word it; which of them comes depends on how far the other rank was.
_LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exiting prematurely")


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective call has failed because another rank is gone; torch has no one class for it."""
    names = {cls.__name__ for cls in type(error).__mro__}
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)  # a download's is an OSError
    return "DistNetworkError" in names or said


def write_in_any_encoding() -> None:
    """A character that the terminal or log cannot hold is replaced, not a reason to end (PYTHONIOENCODING=ascii, LANG=C)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def one_line(error: Exception) -> str:
    """The error's sentence; a data-loader worker wraps it in its own traceback, whose last paragraph is the sentence."""
    text = str(error).strip()
    marker = f"{UserError.__module__}.{UserError.__qualname__}: "
    return " ".join(text.rpartition(marker)[2].split())


class Starter:
    """The process that started this rank, where another one has: a rank stops when it has died, as nobody would collect it.

    It stops as on SIGTERM, within a few seconds, and where it waits for the dead in vain within 40.
    """

    def __init__(self) -> None:
        self._pid: int | None = None

    def watch(self) -> None:
        if "LOCAL_RANK" in os.environ:
            self._pid = os.getppid()
            threading.Thread(target=self._wait, daemon=True, name="starter").start()

    def has_died(self) -> bool:
        return self._pid is not None and os.getppid() != self._pid

    def _wait(self) -> None:
        while not self.has_died():
            time.sleep(_LOOK_EVERY)
        print(f"rank {rank()} stops: the process that started it has died", file=sys.stderr, flush=True)
        STOP.request(signal.SIGTERM, patience=5.0)


STARTER = Starter()

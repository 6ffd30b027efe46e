"""Signals that ask a process to stop: noted when they come, answered at the next safe point, and never waited for in vain.

A handler of Python runs between two of its instructions, so that it comes late where the main thread waits inside a library (for
another rank, for a disk). A thread that the signal wakes all the same ends the process where it does not end by itself.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from latent_tts.errors import StoppedBySignal, UserError

REQUEUE_VARIABLE = "LATENT_TTS_REQUEUE_ON"
"""Names of the signals that ask SLURM for a requeue; they stop a run like the others."""

_ALWAYS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_END_WITHIN = 30.0  # seconds a process may take to close its files after the stop was raised
_RAISED_WITHIN = 5.0  # seconds until it is, where nothing holds it back: longer is a wait inside a library


def requeue_signals() -> set[signal.Signals]:
    """Those after which SLURM is asked to run the job again: by default the two that a batch file's --signal names.

    SIGTERM is not one of them: `scancel` sends it. What it asks for in a pre-emption, `commands/requeue.py` asks SLURM.

    Raises:
        UserError: The variable names something else than a signal.
    """
    names = os.environ.get(REQUEUE_VARIABLE, "USR1,USR2").replace(",", " ").split()
    known = signal.Signals.__members__
    full = {name: name if name.startswith("SIG") else f"SIG{name}" for name in names}
    if wrong := [name for name in names if full[name] not in known]:
        raise UserError(
            f"{REQUEUE_VARIABLE} names {wrong[0]}, which is no signal: give names such as USR1 or USR1,TERM."
        )
    return {known[name] for name in full.values()}


class StopSignals:
    """The stop signals of this process.

    Outside of `hold` a signal raises `StoppedBySignal` at once; within it the signal is noted for `check`, and raised after
    `patience` seconds in which no safe point came. A process that waits inside a library all the same is ended
    `_RAISED_WITHIN` seconds later, and one that is still closing its files after `_END_WITHIN`.
    """

    def __init__(self) -> None:
        self.signum: int | None = None  # the first that came
        self.patience = 5.0
        self.is_requested = False  # by this process itself, as another is missing: no signal came from outside
        self._held, self._raised, self._deadline = False, False, 0.0
        self._done = threading.Event()  # set while nobody listens
        self._done.set()
        os.register_at_fork(after_in_child=self._leave_to_parent)

    @contextmanager
    def listen(self, ends_process: bool = False) -> Iterator[None]:
        """Within it the signals are handled; nested, and in other threads than the main one, it does nothing.

        Args:
            ends_process: Whether nothing comes afterwards: signals that only announce an end are ignored from then on, as they
                would end the interpreter's last second, and a run that is complete, with a code of their own.
        """
        if not self._done.is_set() or threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = {*_ALWAYS, *requeue_signals()}
        self.signum, self.patience, self.is_requested = None, 5.0, False
        self._held, self._raised, self._deadline = False, False, 0.0
        self._done = done = threading.Event()
        handlers = {signum: signal.signal(signum, self._handle) for signum in signals}
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader, signals, done), daemon=True, name="stop-signals").start()
        try:
            yield
        finally:
            done.set()
            signal.set_wakeup_fd(woken)
            for signum, handler in handlers.items():
                is_announcement = ends_process and signum not in (signal.SIGTERM, signal.SIGINT)
                signal.signal(signum, signal.SIG_IGN if is_announcement else handler)
            os.close(writer)  # ends the thread

    def hold(self, patience: float) -> None:
        """From now on a signal waits for `check`, at most this many seconds."""
        self._held, self.patience = True, patience

    def release(self) -> None:
        """Ends `hold`, and raises what has been waiting."""
        self._held, self.patience = False, 5.0
        self.check()

    def check(self) -> None:
        """A safe point.

        Raises:
            StoppedBySignal: A signal has come.
        """
        if self.signum is not None and not self._raised:
            self.stop(self.signum)

    def stop(self, signum: int, kept: str = "") -> None:
        """Stops this process as if the signal had come to it; later signals are ignored while files are closed.

        Raises:
            StoppedBySignal: Always.
        """
        self._deadline = time.monotonic() + _END_WITHIN  # first: the thread looks at it once the stop is raised
        self.signum, self._raised, self._held = signum, True, False
        raise StoppedBySignal(signum, kept)

    @property
    def was_raised(self) -> int | None:
        """The signal that has been raised since `listen`; None where none has."""
        return self.signum if self._raised else None

    def allow(self, seconds: float) -> None:
        """A write has begun that may take this long: the process is not ended meanwhile."""
        self._deadline = time.monotonic() + seconds

    def request(self, signum: int, patience: float) -> None:
        """For threads: the signal comes to the main thread, which has so many seconds to a safe point."""
        if not self._done.is_set():
            self.patience, self.is_requested = patience, self.signum is None
            os.kill(os.getpid(), signum)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        self.signum = self.signum or signum
        if not self._held:
            self.check()

    def _watch(self, reader: int, signals: set[signal.Signals], done: threading.Event) -> None:
        """Waits for the first of the signals; then until the process has had its time to stop."""
        while (data := os.read(reader, 1)) and data[0] not in signals:
            pass
        if data and not self._stops(done, data[0]):
            self._end(data[0])
        while data:
            data = os.read(reader, 1)
        os.close(reader)

    def _stops(self, done: threading.Event, signum: int) -> bool:
        """Whether the process has stopped by itself, its files closed, in its time."""
        if not self._is_stopping(done, signum):
            return False
        while not done.is_set() and time.monotonic() < self._deadline:
            done.wait(0.1)
        return done.is_set()

    def _is_stopping(self, done: threading.Event, signum: int) -> bool:
        """Waits for the stop to be raised, and has it raised where no safe point comes; false where that does nothing."""
        if not self._held:
            return self._is_raised_within(_RAISED_WITHIN, done)
        if self._is_raised_within(self.patience, done):
            return True
        self._held = False
        os.kill(os.getpid(), signum)
        return self._is_raised_within(_RAISED_WITHIN, done)

    def _is_raised_within(self, seconds: float, done: threading.Event) -> bool:
        """The main thread alone sets the deadline of a write (`allow`) and of what follows the stop."""
        until = time.monotonic() + seconds
        while not (self._raised or done.is_set()) and time.monotonic() < max(until, self._deadline):
            done.wait(0.1)
        return self._raised or done.is_set()

    @staticmethod
    def _end(signum: int) -> None:
        stopped = StoppedBySignal(signum, "without having closed its files in time")
        print(f"{stopped.sentence}.", file=sys.stderr, flush=True)
        os._exit(int(str(stopped.code)))

    def _leave_to_parent(self) -> None:
        """In a forked process (a data loader's worker): the parent is asked to stop too, and ends it."""
        if not self._done.is_set():
            signal.set_wakeup_fd(-1)
            for signum in {*_ALWAYS, *requeue_signals()}:
                signal.signal(signum, signal.SIG_DFL if signum == signal.SIGTERM else signal.SIG_IGN)
            self._done = threading.Event()
            self._done.set()


STOP = StopSignals()
"""The one of this process: signals belong to processes."""

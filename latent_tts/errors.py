"""The error a user can mend, and the end that was asked for."""

from __future__ import annotations

import signal


class UserError(ValueError):
    """Bad input: one sentence that names the value and the way out. The entry points print it and exit with `exit_code`."""

    exit_code = 2


class RankDied(UserError):  # noqa: N818 - an end, not a defect of this process
    """Another process of the run has died."""

    exit_code = 1


class StoppedBySignal(SystemExit):
    """A run that was asked to stop. Its exit code is 130 after Ctrl-C and 143 after every other signal, as a shell reports them.

    Args:
        signum: The signal that asked first.
        kept: What is kept of the run, as a clause for the message.
    """

    def __init__(self, signum: int, kept: str = "") -> None:
        super().__init__(130 if signum == signal.SIGINT else 143)
        self.signum, self.kept = signum, kept

    @property
    def sentence(self) -> str:
        """What happened, and how to go on."""
        reason = "interrupted" if self.signum == signal.SIGINT else f"stopped by {signal.Signals(self.signum).name}"
        return f"{reason}{self.kept and f', {self.kept}'}; the same command goes on from here"

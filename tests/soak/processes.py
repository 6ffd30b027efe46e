"""Commands in sessions of their own, so that whatever they leave behind is found."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.soak.workload import END_WITHIN, ROOT


class Command:
    """A running command.

    Args:
        words: The command line.
        log: File of what it prints.
        environment: Variables beside those of this process.
    """

    def __init__(self, words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log, self.started = log, time.monotonic()
        variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | dict(environment or {})
        with log.open("a") as out:
            self.process = subprocess.Popen(
                words, cwd=ROOT, env=variables, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def members(self) -> list[int]:
        """Ids of all processes of its session that are there; zombies are not."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):  # it has ended meanwhile
                    state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                    if int(session) == self.process.pid and state != "Z":
                        found.append(int(entry.name))
        return found

    def ranks(self) -> list[int]:
        """The processes of the other ranks on this machine: those that were started with a LOCAL_RANK."""
        found = []
        for pid in self.members():
            with suppress(OSError):
                is_rank = b"\0LOCAL_RANK=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                if is_rank and parent == self.process.pid:
                    found.append(pid)
        return found

    def wait_until(self, reached: Callable[[], bool], seconds: float) -> bool:
        """Whether it was reached while the command ran."""
        deadline = time.monotonic() + seconds
        while self.is_running and time.monotonic() < deadline:
            if reached():
                return True
            time.sleep(0.05)
        return False

    def end(self, seconds: float = END_WITHIN) -> tuple[int | None, list[int]]:
        """Its exit code, None where it did not end in time, and what it left behind; nothing is left afterwards."""
        code: int | None = None
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(seconds)
        deadline = time.monotonic() + (seconds if code is not None else 0.0)
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        return code, left

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

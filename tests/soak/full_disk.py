"""A disk that is full in the middle of a run: one sentence with the way out, and the same command goes on when there is room."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.soak.kills import Soak
from tests.soak.processes import Command
from tests.soak.workload import Workload, workloads

SHARES = {"evaluation": (0.05, 0.5, 0.9), "annotation": (0.5,), "reward": (0.3, 0.8), "backbone": (0.3, 0.8)}
"""How much of what a run writes there is room for."""


@contextmanager
def small_disk(folder: Path, megabytes: int = 256) -> Iterator[Path]:
    """A file system of its own in memory.

    Raises:
        PermissionError: Only root may mount.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        raise PermissionError(mounted.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class FullDisk:
    """Runs commands whose folder lies on a disk that gets full.

    Args:
        folder: Where everything is made.
    """

    def __init__(self, folder: Path) -> None:
        self.soak = Soak(folder)
        self.folder = folder

    def run(self, names: Sequence[str]) -> str:
        """A line for everything that was not as it should be."""
        found = workloads(self.soak.annotations)
        faults = [self.fill(found[name], share) for name in names for share in SHARES[name]]
        return "\n".join(fault for fault in faults if fault)

    def fill(self, workload: Workload, share: float) -> str:
        """One run with room for a share of what it writes, and on; what went wrong, or nothing."""
        content = self.soak.undisturbed(workload, 1)[0]
        whole = self.folder / f"{workload.name}-1-whole"
        room = int(share * sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()))
        name = f"{workload.name} with room for {share:.0%}"
        log = self.folder / f"{workload.name}-{share}.log"
        with small_disk(self.folder / f"disk-{workload.name}-{share}") as disk:
            ballast = disk / "ballast"
            with ballast.open("wb") as file:
                file.write(b"\0" * (shutil.disk_usage(disk).free - room))
            code, left = Command(workload.command(disk / "run", 1), log).end()
            printed = log.read_text(errors="replace")
            ballast.unlink()
            again = self.soak.finish(workload.command(disk / "run", 1), log)
            print(f"{name}: exit code {code}, then {again}", flush=True)
            if code != 2 or left or "Traceback" in printed or printed.count("error: ") != 1:
                return f"{name}: exit code {code}, see {log}"
            if again != 0 or workload.content(disk / "run") != content:
                return f"{name}: the same command ended with {again} or other files, see {log}"
        return ""

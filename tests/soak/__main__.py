"""`python -m tests.soak --help`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import tests.soak
from tests.soak.full_disk import FullDisk
from tests.soak.kills import SIGNALS, Soak
from tests.soak.scheduler import Scheduler


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=tests.soak.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["kills", "disk", "slurm"])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=60.0, help="No round begins after them.")
    parser.add_argument("--only", nargs="+", default=["evaluation", "annotation", "reward", "backbone"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--signals", nargs="+", default=list(SIGNALS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="Kept; by default a folder that is removed at the end.")
    parser.add_argument("--partition", help="Of SLURM's, for our jobs.")
    parser.add_argument("--preempting", help="A partition whose jobs take the nodes of ours.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if given.what == "disk":
            print(faults := FullDisk(folder).run(given.only))
            return 1 if faults else 0
        if given.what == "slurm":
            partition = [f"--partition={given.partition}"] if given.partition else []
            found = Scheduler(folder.resolve(), given.seed, given.preempting, partition).run(given.only)
            print("\n".join(found))
            return 1 if found else 0
        tally = Soak(folder, given.seed, given.only, given.processes, given.signals).run(given.kills, given.minutes)
    print(tally.summary())
    return 0 if tally.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())

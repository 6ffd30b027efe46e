"""The batch files under a real SLURM: jobs that are signalled, cancelled, killed, pre-empted end with the files of any run."""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.soak.kills import Soak
from tests.soak.workload import ROOT, Workload

FILES = {"evaluation": "evaluate", "annotation": "annotate", "reward": "train", "backbone": "train"}
COMES_BACK = {"requeue": True, "cancel": False, "kill": False, "preemption": True}
"""What happens to a job -> whether SLURM runs it again by itself; otherwise the same file is submitted again."""

_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
_WITHIN = 900.0  # seconds of a job, on nodes that are busy


class Scheduler:
    """Runs jobs on two nodes, one task each.

    Args:
        folder: Where everything is made; all nodes see it.
        seed: Of what happens, and when.
        preempting: A partition whose jobs take the nodes of ours; None leaves pre-emption out.
        options: Of `sbatch`, such as a partition.
    """

    def __init__(self, folder: Path, seed: int, preempting: str | None, options: Sequence[str] = ()) -> None:
        self.folder, self.rng, self.preempting = folder, random.Random(seed), preempting
        self.soak, self.options = Soak(folder, seed), [*options, "--nodes=2", "--ntasks-per-node=1", "--exclusive"]
        self.happenings = [one for one in COMES_BACK if one != "preemption" or preempting]

    def run(self, names: Sequence[str]) -> list[str]:
        """A round of each workload with everything that can happen to a job; a line for all that was not as it should be."""
        plan = [one for one in self.soak.plan if one[0].name in names and one[1] == 2]
        return [fault for workload, processes in plan for fault in self.round(workload, processes)]

    def round(self, workload: Workload, processes: int) -> list[str]:
        """One folder: everything happens to its job once, in any order, then it is left alone."""
        content, before, during = self.soak.undisturbed(workload, processes)
        output, faults = self.folder / f"{workload.name}-slurm", []
        job = self.submit(workload, output)
        for what in self.rng.sample(self.happenings, len(self.happenings)):
            if self.wait(job, ("RUNNING", *_ENDED)) != "RUNNING":
                break
            time.sleep(before + self.rng.uniform(0.0, 0.5 * during))
            if (state := self.state(job)) in _ENDED:
                break
            self.happen(what, job)
            state = self.wait(job, ("PENDING", *_ENDED))
            print(f"{workload.name}: {what} -> {state}", flush=True)
            if state == "COMPLETED":
                break
            if (state == "PENDING") != COMES_BACK[what]:
                faults.append(f"{workload.name}: after {what} the job is {state}, see {self.folder}")
            if state == "PENDING":
                _slurm("scontrol", "update", f"jobid={job}", "StartTime=now")
            else:
                job = self.submit(workload, output)
        if (state := self.wait(job, _ENDED)) != "COMPLETED":
            return [*faults, f"{workload.name}: the job ended as {state}, see {self.folder}"]
        if workload.content(output) != content:
            faults.append(f"{workload.name}: other files than those of a run that nobody disturbed")
        print(f"{workload.name}: completed, {len(faults)} faults", flush=True)
        return faults

    def submit(self, workload: Workload, output: Path) -> str:
        """The job's number."""
        words = [word for word in workload.options if word.startswith("--")]
        words += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", f"--output={output}"]
        log = f"--output={self.folder}/{workload.name}-%j.log"
        file = f"scripts/slurm/{FILES[workload.name]}.sbatch"
        few = ["--gpus-per-node=0", "--cpus-per-task=1"]
        return _slurm("sbatch", "--parsable", *self.options, *few, log, file, *words).strip()

    def happen(self, what: str, job: str) -> None:
        """`requeue` is the signal of a batch file's `--signal`, sent as SLURM sends it: to the tasks alone."""
        if what == "preemption":
            assert self.preempting is not None
            other = [f"--partition={self.preempting}", "--nodes=2", "--exclusive", "--output=/dev/null"]
            _slurm("sbatch", *other, "--wrap=sleep 5")
        else:
            _slurm("scancel", *{"requeue": ["--signal=USR1"], "kill": ["--signal=KILL"]}.get(what, []), job)

    def state(self, job: str) -> str:
        """As SLURM names it."""
        found = re.search(r"JobState=(\w+)", _slurm("scontrol", "show", "job", job))
        assert found is not None
        return found[1]

    def wait(self, job: str, states: Sequence[str]) -> str:
        """Until the job is in one of the states; the one it is in when the time is over, too."""
        deadline = time.monotonic() + _WITHIN
        while (state := self.state(job)) not in states and time.monotonic() < deadline:
            time.sleep(1.0)
        return state


def _slurm(*words: str) -> str:
    return subprocess.run(
        words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    ).stdout

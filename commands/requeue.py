"""A job of SLURM's that is not complete goes back to the queue, where that is wanted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys

from callbacks.signals import REQUEUE_VARIABLE, requeue_signals
from commands.ranks import rank, report_error


def request_requeue(signum: int) -> None:
    """Asks SLURM to run this job again, where there is one and the signal stands for it; a refusal is reported."""
    job = slurm_job()
    if job is None or rank() != 0:
        return
    if signum not in requeue_signals() and not (signum == signal.SIGTERM and leaves_a_preempted_job(job)):
        return
    if shutil.which("scontrol") is None:
        report_error(f"scontrol is not in PATH, so that job {job} was not requeued: submit it again")
        return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        report_error(f"SLURM did not requeue job {job}: {' '.join(done.stderr.split())}")
    else:
        print(f"SLURM has requeued job {job}", file=sys.stderr, flush=True)


def leaves_a_preempted_job(job: str) -> bool:
    """Whether SIGTERM has come as another job takes the nodes, with time to end before SLURM would end and requeue this one.

    A job that ends by itself in this time (the GraceTime of its partition) has failed for SLURM, and does not come back. Without
    such a time SLURM has requeued it when the signal comes. Where a user has named the signals of a requeue, they alone count.
    """
    if REQUEUE_VARIABLE in os.environ or shutil.which("scontrol") is None:
        return False
    said = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False).stdout
    told = dict(re.findall(r"(\w+)=(\S+)", said))
    return told.get("JobState") == "RUNNING" and told.get("PreemptTime", "None") != "None"


def slurm_job() -> str | None:
    """The job's number as scontrol takes it, N_M for an element of an array; None outside of a batch job."""
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")

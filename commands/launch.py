"""The processes of a run: their number must be the one that the options name, and none of them outlives the others."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from callbacks.signals import STOP
from commands.guard import is_lost_connection
from latent_tts.errors import RankDied, StoppedBySignal, UserError

_LOOK_EVERY = 0.5  # seconds
_END_WITHIN = 15.0  # seconds that the other ranks have after one has died
_ASKED = (130, 143, *(-number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)))

_INTERACTIVE = "srun in an interactive job"


@dataclass(frozen=True)
class Started:
    """What a launcher says about the processes that it has started."""

    launcher: str
    processes: int
    nodes: int


def started_processes(environment: Mapping[str, str]) -> Started | None:
    """The processes of torchrun, SLURM or MPI; None where none of them has started this one."""

    def number(name: str, default: int = 1) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdigit() else default

    if "TORCHELASTIC_RUN_ID" in environment:
        processes = number("WORLD_SIZE")
        return Started("torchrun", processes, max(1, processes // max(1, number("LOCAL_WORLD_SIZE", processes))))
    if environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):  # Lightning takes such a job for a terminal
        if number("SLURM_STEP_NUM_TASKS") > 1:
            return Started(_INTERACTIVE, number("SLURM_STEP_NUM_TASKS"), number("SLURM_STEP_NUM_NODES"))
    elif "SLURM_NTASKS" in environment:
        return Started("SLURM", number("SLURM_NTASKS"), number("SLURM_NNODES", number("SLURM_JOB_NUM_NODES")))
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if name in environment:
            return Started("mpirun", number(name), 1)
    return Started("WORLD_SIZE", number("WORLD_SIZE"), 1) if "WORLD_SIZE" in environment else None


def check_processes(trainer: Trainer) -> None:
    """Refuses a run each of whose processes would do the whole work as if it were alone.

    Raises:
        UserError: A launcher has started another number of processes than the trainer's options name.
    """
    started = started_processes(os.environ)
    if started is not None and started.launcher == _INTERACTIVE:
        raise UserError(
            f"srun has started {started.processes} tasks in an interactive job, which do not find one another: name the job "
            "(salloc --job-name NAME), or start without srun on one node."
        )
    if started is None or started.processes == trainer.world_size:
        return
    if started.launcher == "mpirun" and started.processes > 1:
        raise UserError(
            f"mpirun has started {started.processes} processes, which do not find one another: use torchrun or srun."
        )
    each = f"{started.processes} process{'es' * (started.processes > 1)}"
    what = {
        "torchrun": f"torchrun has started {each}",
        "SLURM": f"The SLURM job has {started.processes} task{'s' * (started.processes > 1)}",
    }.get(started.launcher, f"WORLD_SIZE says {each}")
    raise UserError(f"{what}, but the options name {trainer.world_size}: {_options(started)}.")


def _options(started: Started) -> str:
    """What to give so that the options name these processes."""
    if started.processes == 1:
        alternative = {
            "torchrun": "start with --nproc_per_node",
            "SLURM": "ask for --ntasks-per-node and start with srun",
        }.get(started.launcher, "unset WORLD_SIZE")
        return f"{alternative}, or give --trainer.devices 1"
    nodes = f" --trainer.num_nodes {started.nodes}" if started.nodes > 1 else ""
    options = f"give --trainer.devices {started.processes // started.nodes}{nodes} --trainer.strategy ddp"
    return options + {
        "torchrun": "",
        "SLURM": " and start with srun, or ask for one task",
    }.get(started.launcher, ", or unset WORLD_SIZE")


def watch_ranks(trainer: Trainer) -> None:
    """Makes the trainer's own launcher of processes watch them as `RankLauncher` does."""
    launcher = trainer.strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        own = RankLauncher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
        trainer.strategy._launcher = own


class RankLauncher(_SubprocessScriptLauncher):
    """Starts the other ranks of this machine, ends with the first that dies, and leaves none behind.

    Lightning's would kill rank 0 without a word while it closes its files.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        if self.cluster_environment.creates_processes_externally or self.num_processes == 1:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        self._call_children_scripts()
        done = threading.Event()
        threading.Thread(target=watch, args=(self.procs, done), daemon=True, name="ranks").start()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            done.set()
            died = None if is_own_end(error) else dead_rank(self.procs, wait=2.0)
            asked = asked_of(self.procs)
            end(self.procs)
            if died is not None:
                raise RankDied(obituary(died, self.procs[died - 1].returncode)) from error
            if asked is not None and is_lost_connection(error):
                raise StoppedBySignal(asked) from error
            raise
        for process in self.procs:
            process.wait()
        done.set()
        if (late := dead_rank(self.procs)) is not None:
            raise RankDied(obituary(late, self.procs[late - 1].returncode))
        return result


def watch(processes: Sequence[subprocess.Popen[bytes]], done: threading.Event) -> None:
    """Until `done`: stops this process when another rank has ended with an error, also where it waits for the dead."""
    while not done.wait(_LOOK_EVERY):
        if any(process.poll() for process in processes):
            interrupted = any(process.returncode in (130, -signal.SIGINT) for process in processes)
            STOP.request(signal.SIGINT if interrupted else signal.SIGTERM, patience=_END_WITHIN)
            return


def dead_rank(processes: Sequence[subprocess.Popen[bytes]], wait: float = 0.0) -> int | None:
    """The local rank of a process that has ended with an error, and not because it was asked to; None where there is none.

    Args:
        processes: Those of local rank 1 and on.
        wait: Seconds to give the operating system to report a death.
    """
    deadline = time.monotonic() + wait
    while True:
        codes = [process.poll() for process in processes]
        dead = [rank for rank, code in enumerate(codes, start=1) if code and code not in _ASKED]
        if dead or any(codes) or time.monotonic() >= deadline:
            return dead[0] if dead else None
        time.sleep(0.1)


def is_own_end(error: BaseException) -> bool:
    """Whether this process ends for a reason of its own, bad input or a signal: that others lose it then is no news."""
    return isinstance(error, UserError) or (isinstance(error, StoppedBySignal) and not STOP.is_requested)


def asked_of(processes: Sequence[subprocess.Popen[bytes]]) -> signal.Signals | None:
    """What a process that has ended was asked by; None where none was."""
    asked = {process.poll() for process in processes} & set(_ASKED)
    if not asked:
        return None
    return signal.SIGINT if asked & {130, -signal.SIGINT} else signal.SIGTERM


def obituary(rank: int, code: int) -> str:
    """What has become of a rank, and what to do."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"rank {rank} {how}; the other ranks stop, and the same command goes on from here"


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends all processes: as on SIGTERM, and those that are still there after a while at once."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _END_WITHIN
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

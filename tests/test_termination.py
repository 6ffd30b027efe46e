"""A signal stops a run at a safe point: writers are told, a training keeps its step, the exit code is never 0."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

from callbacks.signals import STOP
from callbacks.termination import StopOnSignal
from commands.guard import main_guard
from commands.launch import RankLauncher
from latent_tts.errors import StoppedBySignal
from tests.training import make_data, make_trainer, write_tiny_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


class Signalled(LightningModule):
    """Sends itself a signal in one of its batches; one weight, to be trained."""

    def __init__(self, signum: int, batch_idx: int = 2) -> None:
        super().__init__()
        self.signum, self.at = signum, batch_idx
        self.begun: list[int] = []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def _step(self, batch_idx: int) -> torch.Tensor:
        self.begun.append(batch_idx)
        if batch_idx == self.at:
            send(self.signum)
        return (self.weight - 1).square().sum()

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self._step(batch_idx)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self._step(batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Writer(Callback):
    """Remembers what a writer is told, and may get a signal while it writes."""

    def __init__(self, signum: int | None = None) -> None:
        self.signum, self.begun, self.written = signum, 0, 0
        self.told: list[Any] = []

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.begun += 1
        if self.signum is not None:
            send(self.signum)
        self.written += 1

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.told.append(type(exception))


def batches() -> DataLoader:
    return DataLoader(torch.arange(20.0), batch_size=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_prediction_stops_in_its_batch_tells_the_writers_and_leaves_no_handler(signum, tmp_path):
    module, writer = Signalled(signum), Writer()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    trainer = make_trainer(default_root_dir=tmp_path, callbacks=[StopOnSignal(), writer])
    with pytest.raises(StoppedBySignal) as stopped:
        trainer.predict(module, batches())
    assert stopped.value.code == (130 if signum == signal.SIGINT else 143)
    assert module.begun == [0, 1, 2]
    assert writer.told == [StoppedBySignal]
    assert before == {number: signal.getsignal(number) for number in SIGNALS}
    assert list(tmp_path.iterdir()) == []


def test_what_a_writer_does_with_a_batch_is_not_interrupted(tmp_path):
    writer = Writer(signal.SIGTERM)
    with pytest.raises(StoppedBySignal):
        make_trainer(callbacks=[StopOnSignal(), writer]).predict(Signalled(signal.SIGTERM, 10), batches())
    assert (writer.begun, writer.written) == (1, 1)


@pytest.mark.parametrize(("at", "accumulated", "steps"), [(2, 1, 3), (4, 4, 2), (5, 4, 2), (19, 4, 5)])
def test_a_training_stops_after_the_optimizer_step_it_is_in_and_keeps_it(at, accumulated, steps, tmp_path):
    """Of 20 batches, `accumulated` to a step: batch `at` belongs to step floor(at / accumulated) + 1."""
    module = Signalled(signal.SIGUSR1, at)
    kept = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
    trainer = make_trainer(
        max_epochs=2, accumulate_grad_batches=accumulated, enable_checkpointing=True, callbacks=[StopOnSignal(), kept]
    )
    with pytest.raises(StoppedBySignal) as stopped:
        trainer.fit(module, batches())
    assert stopped.value.code == 143
    assert len(module.begun) == steps * accumulated
    assert f"step {steps} is in {tmp_path / 'last.ckpt'}" in stopped.value.sentence
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == steps
    assert torch.equal(checkpoint["state_dict"]["weight"], module.weight.detach())


def test_a_training_without_a_file_for_its_last_state_writes_none(tmp_path):
    trainer = make_trainer(max_epochs=1, default_root_dir=tmp_path, callbacks=[StopOnSignal()])
    with pytest.raises(StoppedBySignal) as stopped:
        trainer.fit(Signalled(signal.SIGINT), batches())
    assert stopped.value.code == 130
    assert list(tmp_path.iterdir()) == []


def test_a_signal_outside_of_a_training_step_ends_a_command_at_once(capsys):
    def run() -> None:
        send(signal.SIGTERM)
        raise AssertionError("still running")

    assert main_guard(run) == 143
    assert capsys.readouterr().err == "error: stopped by SIGTERM; the same command goes on from here\n"


def test_a_signal_in_a_commands_last_moments_does_not_end_with_0(capsys):
    def run() -> None:
        STOP.hold(patience=60.0)
        send(signal.SIGINT)

    assert main_guard(run) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_signal_that_a_package_has_turned_into_an_error_of_its_own_stops_the_command_all_the_same(capsys):
    def run():
        try:
            send(signal.SIGTERM)
        except StoppedBySignal:
            raise ImportError("cannot load a module twice") from None

    assert main_guard(run) == 143
    said = capsys.readouterr().err
    assert "stopped by SIGTERM" in said and "cannot load a module twice" in said and "Traceback" not in said


def test_a_signal_that_comes_during_the_imports_stops_the_command_when_they_are_over():
    program = """
        import os, signal, sys
        from commands.guard import main_guard
        from commands.importing import importing

        def run():
            with importing():
                os.kill(os.getpid(), signal.SIGTERM)
                print("imported")
            print("begun")

        sys.exit(main_guard(run))
        """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "imported\n")


def test_a_signal_that_announces_an_end_comes_too_late_when_the_work_is_done():
    """It is raised while the interpreter ends, where it would make 138 of a run that is complete."""
    program = """
        import atexit, os, signal
        from commands.guard import main_guard

        atexit.register(lambda: [os.kill(os.getpid(), signum) for signum in (signal.SIGUSR1, signal.SIGXCPU)])
        raise SystemExit(main_guard(lambda: print("done"), ends_process=True))
        """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, check=False).returncode == 0


def test_a_signal_that_finds_no_safe_point_stops_the_command_all_the_same():
    def run() -> None:
        STOP.hold(patience=0.3)
        send(signal.SIGTERM)
        time.sleep(20)

    started = time.monotonic()
    assert main_guard(run) == 143
    assert time.monotonic() - started < 10


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *(["-c", code] if code else []), *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_process_that_waits_inside_a_library_is_ended():
    """The wait for a key that never comes does not return to Python, so that no handler of Python runs."""
    waiting = """
import datetime, sys
import callbacks.signals
from commands.guard import main_guard
callbacks.signals._RAISED_WITHIN = 0.5
def run():
    from torch.distributed import TCPStore
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=datetime.timedelta(seconds=60))
    print("waits", flush=True)
    store.wait(["never"])
sys.exit(main_guard(run))
"""
    process = python(waiting)
    assert process.stdout is not None and process.stdout.readline() == "waits\n"
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM" in process.communicate(timeout=30)[1]
    assert process.returncode == 143


def test_a_forked_worker_leaves_stopping_to_its_parent():
    def run() -> None:
        child = os.fork()
        if child == 0:
            send(signal.SIGINT)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

    assert main_guard(run) == 0


@pytest.mark.parametrize(
    "lost", ["[pair.cc:553] Connection closed by peer", "[pair.cc:537] Read error: Connection reset by peer"]
)
def test_a_wait_for_a_rank_that_was_asked_to_stop_is_no_failure(capsys, lost):
    """Rank 1 gets the signal alone, and rank 0 learns of it by the connection that is lost."""
    child = python("import sys; sys.exit(143)")
    launcher = RankLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    launcher._call_children_scripts = lambda: launcher.procs.append(child)  # type: ignore[method-assign]

    def waiting() -> None:
        raise RuntimeError(lost)

    assert main_guard(lambda: launcher.launch(waiting)) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_rank_0_whose_launcher_is_another_says_in_one_line_that_a_rank_has_died(capsys):
    def waiting() -> None:
        raise RuntimeError(
            "[pair.cc:553] Connection closed by peer [127.0.0.1]:2749. Check the logs of the remote worker"
        )

    assert main_guard(waiting) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "another rank" in said


def test_a_rank_that_has_lost_a_stopped_one_is_not_taken_for_the_cause(capsys):
    """Rank 0 gets the signal alone; rank 1 loses its connection, and ends with an error, before rank 0 has closed its files."""
    child = python("import sys; sys.exit(1)")
    launcher = RankLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    launcher._call_children_scripts = lambda: launcher.procs.append(child)  # type: ignore[method-assign]

    def stopped() -> None:
        try:
            send(signal.SIGTERM)
        finally:
            child.wait()

    assert main_guard(lambda: launcher.launch(stopped)) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err


# Two processes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[subprocess.Popen[str], Path, list[int]]]:
    """Starts a run of two gloo processes, and returns it with its folder and the ids of both once they work."""
    model = write_tiny_model(tmp_path_factory.mktemp("model"))

    def start(what: str) -> tuple[subprocess.Popen[str], Path, list[int]]:
        folder = tmp_path_factory.mktemp(what)
        make_data(folder, batch_size=2)
        run = python("", "-m", "tests.run_until_stopped", str(model), str(folder), what, "2")
        files = [folder / "rank-0.pid", folder / "rank-1.pid"]
        deadline = time.monotonic() + 120
        while not all(file.exists() and file.read_text() for file in files):
            assert run.poll() is None and time.monotonic() < deadline, run.communicate()
            time.sleep(0.05)
        return run, folder, [int(file.read_text()) for file in files]

    return start


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, f"of {pids} some are left"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("what", "ranks"), [("fit", [1]), ("fit", [0, 1]), ("predict", [1])])
def test_two_processes_stop_whichever_gets_the_signal(what, ranks, start):
    run, folder, pids = start(what)
    for rank in ranks:
        os.kill(pids[rank], signal.SIGTERM)
    error = run.communicate(timeout=60)[1]
    assert run.returncode == 143
    assert "stopped by SIGTERM" in error and "Traceback" not in error
    assert_gone(pids)
    ends = [(folder / f"rank-{rank}.end").read_text() for rank in (0, 1)]
    assert ends[0] == ends[1] and ends[0].endswith("StoppedBySignal")  # at the same step
    if what == "fit":
        step = int(ends[0].split()[0])
        assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("what", "dead"), [("fit", 1), ("predict", 0)])
def test_when_a_rank_is_killed_the_other_ends_too_and_it_is_named(what, dead, start):
    run, _, pids = start(what)
    os.kill(pids[dead], signal.SIGKILL)
    error = run.communicate(timeout=60)[1]
    assert run.returncode == (-signal.SIGKILL if dead == 0 else 1)
    assert ("the process that started it has died" if dead == 0 else "rank 1 was killed by SIGKILL") in error
    assert_gone(pids)

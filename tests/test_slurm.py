"""The batch files of scripts/slurm, run with a faked scheduler; requeues, and tasks that the options do not name."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from commands.evaluate import EvaluationCLI
from commands.guard import main_guard
from commands.launch import Started, check_processes, started_processes
from commands.requeue import request_requeue, slurm_job
from latent_tts.errors import UserError
from tests.training import make_trainer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "scripts" / "slurm").glob("*.sbatch"))
SRUN = """#!/usr/bin/env bash
# Starts one process a task, as srun does; options of its own come first.
while [[ "$1" == --* ]]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % SLURM_NTASKS_PER_NODE)) SLURM_NODEID=$((task / SLURM_NTASKS_PER_NODE)) "$@" &
    tasks+=($!)
done
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit "$code"
"""


def directives(file: Path) -> dict[str, str]:
    """The options of a batch file's `#SBATCH` lines."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", file.read_text(), re.MULTILINE))


def job(file: Path, folder: Path, nodes: int | None = None, tasks_per_node: int | None = None) -> dict[str, str]:
    """The environment of the batch shell, as sbatch makes it out of the file; commands are looked for in `folder`/bin first."""
    asked = directives(file)
    nodes, tasks = nodes or int(asked["nodes"]), tasks_per_node or int(asked["ntasks-per-node"])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMP_", "HF_"))}
    return kept | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": asked["job-name"], "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_NNODES": str(nodes), "SLURM_NTASKS": str(nodes * tasks), "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_CPUS_PER_TASK": asked["cpus-per-task"], "SLURM_NODELIST": "127.0.0.1", "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
        **({"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3"} if "array" in asked else {}),
    }  # fmt: skip


def fake(folder: Path, name: str, text: str) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / name).write_text(text)
    (folder / "bin" / name).chmod(0o755)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_batch_file_starts_its_tasks_with_the_options_that_name_them(file, tmp_path):
    fake(tmp_path, "srun", '#!/bin/sh\nprintf "%s\\n" "$OMP_NUM_THREADS" "$HF_HUB_OFFLINE" "$@"\n')
    first = ["out"] if file.name == "evaluate_seeds.sbatch" else []
    given = ["--trainer.strategy", "fsdp"] if file.name == "train.sbatch" else []
    done = subprocess.run(
        ["bash", str(file), *first, "--config", "a b.yaml", *given],
        cwd=ROOT, env=job(file, tmp_path), capture_output=True, text=True, check=True,
    )  # fmt: skip
    threads, offline, *command = done.stdout.splitlines()
    asked = directives(file)
    assert (threads, offline) == (asked["cpus-per-task"], "1")
    assert command[:2] == ["--kill-on-bad-exit=1", "python"]
    assert command[command.index("--config") + 1] == "a b.yaml"
    named = {option: command[command.index(option) + 1] for option in command if option.startswith("--trainer.")}
    assert named["--trainer.devices"] == asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert named.get("--trainer.num_nodes", "1") == asked["nodes"]
    strategies = [word for option, word in pairwise(command) if option == "--trainer.strategy"]
    assert strategies[-1:] == given[-1:] or not given  # the last one wins
    assert asked["signal"].startswith("USR1@") and "requeue" in asked
    if "array" in asked:
        assert command[command.index("--output") + 1] == "out-seed-3"
        assert command[command.index("--model.seed") + 1] == "3"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_evaluation_of_two_nodes_gives_the_metrics_of_one_process(tiny_checkpoint, problem_file, tmp_path):
    """Two nodes of one task each, whose processes run on this machine."""
    options = [
        f"--model.backbone={tiny_checkpoint}", f"--data.source={problem_file}", "--data.limit=5", "--data.batch_size=2",
        "--model.num_rollouts=2", "--model.max_answer_tokens=4", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    assert main_guard(lambda: EvaluationCLI([*options, f"--output={tmp_path / 'one'}"]).run()) == 0
    fake(tmp_path, "srun", SRUN)
    fake(tmp_path, "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    file = ROOT / "scripts" / "slurm" / "evaluate.sbatch"
    done = subprocess.run(
        ["bash", str(file), *options, f"--output={tmp_path / 'two'}"],
        cwd=ROOT, env=job(file, tmp_path, nodes=2, tasks_per_node=1), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert one | {"throughput": None} == two | {"throughput": None}
    assert len(list((tmp_path / "two" / "predictions").glob("rank-*.jsonl"))) == 2


@pytest.mark.skipif(not os.environ.get("SHELLCHECK") and shutil.which("shellcheck") is None, reason="no shellcheck")
def test_the_batch_files_pass_shellcheck():
    files = [str(file) for file in (ROOT / "scripts" / "slurm").iterdir()]
    checker = os.environ.get("SHELLCHECK", "shellcheck")
    done = subprocess.run([checker, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# Requeues -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file to which a faked scontrol appends its arguments; the environment is that of job 4711."""
    fake(tmp_path, "scontrol", f'#!/bin/sh\necho "$*" >> "{tmp_path}/calls"\n')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in ("RANK", "LOCAL_RANK")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    (tmp_path / "calls").touch()
    return tmp_path / "calls"


def stopped_by(signum: int) -> int:
    return main_guard(lambda: os.kill(os.getpid(), signum))


def test_a_signal_that_a_batch_file_names_gives_the_job_back_to_the_queue(scontrol, capsys):
    assert stopped_by(signal.SIGUSR1) == 143
    assert scontrol.read_text() == "requeue 4711\n"
    assert "SLURM has requeued job 4711" in capsys.readouterr().err


def test_scancel_and_ctrl_c_do_not_requeue(scontrol):
    assert (stopped_by(signal.SIGTERM), stopped_by(signal.SIGINT)) == (143, 130)
    assert "requeue" not in scontrol.read_text()


@pytest.mark.parametrize(
    ("said", "variable", "requeued"),
    [
        ("JobState=RUNNING Reason=None\n PreemptEligibleTime=2026-11-27T18:10:16 PreemptTime=2026-11-27T18:10:22", None, True),
        ("JobState=RUNNING Reason=None\n PreemptEligibleTime=2026-11-27T18:10:16 PreemptTime=2026-11-27T18:10:22", "USR1", False),
        ("JobState=RUNNING Reason=None\n PreemptEligibleTime=2026-11-27T18:10:38 PreemptTime=None", None, False),
        ("JobState=COMPLETING Reason=None\n Requeue=1 Restarts=1 BatchFlag=1", None, False),
        ("", None, False),
    ],
    ids=["with time to end", "other signals named", "scancel", "requeued by SLURM", "unknown"],
)  # fmt: skip
def test_a_preempted_job_goes_back_to_the_queue_where_slurm_would_take_its_end_for_a_failure(
    said, variable, requeued, scontrol, tmp_path, monkeypatch
):
    """What `scontrol show job` of SLURM 22.05 says while the job has SIGTERM."""
    fake(tmp_path, "scontrol", f"#!/bin/sh\necho \"$*\" >> '{scontrol}'\n[ $1 = show ] && echo '{said}'\nexit 0\n")
    if variable is not None:
        monkeypatch.setenv("LATENT_TTS_REQUEUE_ON", variable)
    assert stopped_by(signal.SIGTERM) == 143
    assert ("requeue 4711" in scontrol.read_text()) == requeued


def test_the_signals_of_a_requeue_can_be_named(scontrol, monkeypatch):
    monkeypatch.setenv("LATENT_TTS_REQUEUE_ON", "TERM, SIGHUP")
    assert stopped_by(signal.SIGUSR1) == 143
    assert scontrol.read_text() == ""
    assert (stopped_by(signal.SIGTERM), stopped_by(signal.SIGHUP)) == (143, 143)
    assert scontrol.read_text() == "requeue 4711\nrequeue 4711\n"


def test_an_unknown_signal_is_one_sentence(scontrol, monkeypatch, capsys):
    monkeypatch.setenv("LATENT_TTS_REQUEUE_ON", "USR3")
    assert main_guard(lambda: None) == 2
    assert "LATENT_TTS_REQUEUE_ON names USR3" in capsys.readouterr().err


def test_only_rank_0_asks_and_an_array_s_element_is_named(scontrol, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4700")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    request_requeue(signal.SIGUSR1)
    assert scontrol.read_text() == ""
    monkeypatch.setenv("SLURM_PROCID", "0")
    request_requeue(signal.SIGUSR1)
    assert scontrol.read_text() == "requeue 4700_2\n"


def test_an_interactive_job_is_not_requeued(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert slurm_job() is None


def test_a_refused_requeue_is_reported(scontrol, tmp_path, capsys):
    fake(tmp_path, "scontrol", "#!/bin/sh\necho 'Requested operation is disabled' >&2\nexit 1\n")
    assert stopped_by(signal.SIGUSR2) == 143
    assert "SLURM did not requeue job 4711: Requested operation is disabled" in capsys.readouterr().err


# Tasks that the options do not name ---------------------------------------------------------------------------------

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "x"}
# as SLURM 22.05 sets them, in the shell of salloc and in a task of srun in it
SALLOC = {"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "interactive"}
STEP = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}


@pytest.mark.parametrize(
    ("environment", "started"),
    [
        (TORCHRUN, Started("torchrun", 8, 2)),
        (SLURM, Started("SLURM", 8, 2)),
        (SLURM | TORCHRUN, Started("torchrun", 8, 2)),
        (SLURM | {"SLURM_JOB_NAME": "bash"}, None),
        (SALLOC, None),
        (SALLOC | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, None),
        (SALLOC | STEP, Started("srun in an interactive job", 4, 2)),
        (SALLOC | STEP | TORCHRUN, Started("torchrun", 8, 2)),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, Started("mpirun", 4, 1)),
        ({"WORLD_SIZE": "2"}, Started("WORLD_SIZE", 2, 1)),
        ({}, None),
    ],
)
def test_what_has_started_the_processes_is_read_from_the_environment(environment, started):
    assert started_processes(environment) == started


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (
            TORCHRUN,
            "torchrun has started 8 processes, but the options name 1: give --trainer.devices 4 --trainer.num_nodes 2",
        ),
        (SLURM, "The SLURM job has 8 tasks, but the options name 1: give --trainer.devices 4 --trainer.num_nodes 2"),
        (SALLOC | STEP, "srun has started 4 tasks in an interactive job"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "use torchrun or srun"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE says 2 processes, but the options name 1"),
    ],
)
def test_tasks_that_would_each_do_the_whole_work_are_refused(environment, sentence, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr("os.environ", environment)
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_processes(trainer)


def test_one_task_for_one_process_is_what_the_options_name(monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr("os.environ", SLURM | {"SLURM_NTASKS": "1", "SLURM_NNODES": "1"})
    check_processes(trainer)

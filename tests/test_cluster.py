"""torchrun, and what docs/cluster.md says: files, variables and exit codes that exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from callbacks.signals import REQUEUE_VARIABLE
from commands.evaluate import EvaluationCLI
from commands.guard import main_guard

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "cluster.md").read_text()


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes of `evaluate.py` under torchrun."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "evaluate.py", *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=280,
    )  # fmt: skip


@pytest.fixture
def options(tiny_checkpoint, problem_file) -> list[str]:
    return [
        f"--model.backbone={tiny_checkpoint}", f"--data.source={problem_file}", "--data.limit=3", "--data.batch_size=2",
        "--model.num_rollouts=2", "--model.max_answer_tokens=4", "--trainer.accelerator=cpu",
    ]  # fmt: skip


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_metrics_of_one(options, tmp_path):
    assert main_guard(lambda: EvaluationCLI([*options, f"--output={tmp_path / 'one'}"]).run()) == 0
    done = torchrun(*options, f"--output={tmp_path / 'two'}", "--trainer.devices=2", "--trainer.strategy=ddp")
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert one | {"throughput": None} == two | {"throughput": None}


def test_processes_of_torchrun_that_the_options_do_not_name_are_refused(options, tmp_path, monkeypatch, capsys):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main_guard(lambda: EvaluationCLI([*options, f"--output={tmp_path / 'none'}"]).run()) == 2
    sentence = "torchrun has started 2 processes, but the options name 1: give --trainer.devices 2"
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_every_file_that_the_page_names_exists():
    for name in re.findall(r"scripts/slurm/[\w.]+\w|configs/[\w./-]+\.yaml", PAGE):
        assert (ROOT / name).exists(), name
    table = {f"`{file.name}`" for file in (ROOT / "scripts" / "slurm").glob("*.sbatch")}
    assert table <= set(re.findall(r"`[\w.]+`", PAGE))


def test_every_line_of_the_batch_files_is_explained():
    for file in (ROOT / "scripts" / "slurm").glob("*.sbatch"):
        for option in re.findall(r"^#SBATCH (--[\w-]+)", file.read_text(), re.MULTILINE):
            assert option in PAGE or option in ("--job-name", "--array"), option


def test_every_variable_of_the_batch_files_is_explained():
    settings = (ROOT / "scripts" / "slurm" / "environment.sh").read_text()
    for variable in {
        *re.findall(r"^export (\w+)=", settings, re.MULTILINE),
        "LATENT_TTS_ENVIRONMENT",
        REQUEUE_VARIABLE,
    }:
        assert f"`{variable}" in PAGE, variable

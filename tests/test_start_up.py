"""The help of the command lines loads no package that it does not need."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
HEAVY = ("datasets", "tensorboard", "reasoning_gym", "peft", "pandas")

RUN = """
import json, runpy, sys
sys.argv = json.loads(sys.argv[1])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    pass
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def loaded_by(*command: str) -> set[str]:
    """Top-level packages in memory after a command of one of the entry points."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(command)],
        capture_output=True, text=True, cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "usage:" in done.stdout
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        (("evaluate.py", "--help"), (*HEAVY, "pyarrow")),
        (("evaluate.py", "annotate", "--help"), HEAVY),
        (("train.py", "--help"), (*HEAVY, "pyarrow")),
        (("train.py", "fit", "--help"), (*HEAVY, "pyarrow")),
    ],
)
def test_help_loads_no_package_that_it_does_not_need(command: tuple[str, ...], unneeded: tuple[str, ...]) -> None:
    loaded = loaded_by(*command)
    assert {"torch", "lightning", "torchmetrics"} <= loaded
    assert not loaded & set(unneeded)


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("command", [("evaluate.py", "--help"), ("train.py", "fit", "--help")], ids=" ".join)
def test_help_fits_the_terminal_and_is_written_in_any_encoding(command: tuple[str, ...], columns: int) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": str(columns), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    long = [line for line in done.stdout.splitlines() if len(line) > columns]
    assert [line for line in long if not line.strip().startswith(("--", "['/"))] == []  # names are not broken


def test_help_of_training_lists_the_trainings_and_short_names_work_in_a_fresh_process() -> None:
    def told_by(*command: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        return subprocess.run(
            [sys.executable, "train.py", *command],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            check=True,
        ).stdout

    listed = told_by("fit", "--help")
    for name in (
        "CoconutModule:",
        "CodiModule:",
        "ColarModule:",
        "ColarGRPOModule:",
        "ChainOfThoughtModule:",
        "LatentRMModule:",
    ):
        assert name in listed
    assert "BackboneModule:" not in listed and "ParallelTTSModule" not in listed
    assert "--model.curriculum.cot_epochs" in told_by("fit", "--model.help", "CoconutModule")

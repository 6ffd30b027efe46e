"""The help of the command lines: what it loads, that it fits the terminal, and what it lists. One process prints all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
HEAVY = {"datasets", "tensorboard", "reasoning_gym", "peft", "pandas"}
RUN = """
import contextlib, io, json, os, runpy, sys
told = []
for columns, command in json.loads(sys.argv[1]):
    os.environ["COLUMNS"], sys.argv = str(columns), command.split()
    sys.stdout.flush()
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="ascii")) as out, contextlib.suppress(SystemExit):
        runpy.run_path(sys.argv[0], run_name="__main__")
    out.seek(0)
    told.append([out.read(), sorted({name.partition(".")[0] for name in sys.modules})])
print(json.dumps(told))
"""
# What loads the most comes last; until the help of one training is asked for, none of them has been imported.
COMMANDS = [
    (200, "train.py fit --help"),
    *((columns, command) for command in ("train.py fit --help", "evaluate.py --help") for columns in (60, 80)),
    (80, "train.py --help"),
    (80, "evaluate.py annotate --help"),
    (200, "train.py fit --model.help CoconutModule"),
]


@dataclass(frozen=True)
class Told:
    """What a command has printed, and the top-level packages that are in memory after it."""

    text: str
    loaded: set[str]


@pytest.fixture(scope="module")
def told() -> dict[tuple[int, str], Told]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(COMMANDS)],
        capture_output=True, text=True, cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    rows = json.loads(done.stdout.splitlines()[-1])
    return {command: Told(text, set(loaded)) for command, (text, loaded) in zip(COMMANDS, rows, strict=True)}


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [((80, "train.py --help"), HEAVY | {"pyarrow"}), ((80, "evaluate.py annotate --help"), HEAVY)],
    ids=["training and evaluation", "annotation"],
)
def test_help_loads_no_package_that_it_does_not_need(command, unneeded, told):
    assert {"torch", "lightning", "torchmetrics"} <= told[command].loaded
    assert not told[command].loaded & unneeded


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("command", ["evaluate.py --help", "train.py fit --help"])
def test_help_fits_the_terminal_and_is_written_in_any_encoding(command, columns, told):
    lines = told[columns, command].text.splitlines()
    assert any("usage:" in line for line in lines)
    long = [line for line in lines if len(line) > columns]
    assert [line for line in long if not line.strip().startswith(("--", "['/"))] == []  # names are not broken


def test_help_of_training_lists_the_trainings_and_short_names_work_in_a_fresh_process(told):
    listed = told[200, "train.py fit --help"].text
    for name in ("Coconut", "Codi", "Colar", "ColarGRPO", "ChainOfThought", "LatentRM"):
        assert f"{name}Module:" in listed
    assert "BackboneModule:" not in listed and "ParallelTTSModule" not in listed
    assert "--model.curriculum.cot_epochs" in told[200, "train.py fit --model.help CoconutModule"].text


def test_the_collector_is_off_while_large_packages_are_imported_and_back_on_afterwards_even_when_that_fails():
    told = run(
        """
        import gc
        from commands.importing import importing
        try:
            with importing():
                inside = gc.isenabled()
                import json.no_such_module
        except ImportError:
            print(inside, gc.isenabled(), gc.get_freeze_count() > 0)
        """
    )
    assert told == "False True True"


def test_the_collector_stays_as_somebody_else_has_set_it():
    told = run(
        "import gc; gc.disable()\nfrom commands.importing import importing\nwith importing(): pass\nprint(gc.isenabled())"
    )
    assert told == "False"


def run(program: str) -> str:
    """What a program prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout.strip()

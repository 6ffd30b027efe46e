"""The help of the command lines loads no package that it does not need."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("matplotlib", "datasets", "tensorboard", "reasoning_gym", "peft", "pandas")
MODELS = ("transformers", "scipy")  # transformers itself loads scipy where it is installed

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
        (("train.py", "--help"), (*HEAVY, *MODELS, "pyarrow")),
        (("train.py", "fit", "--help"), (*HEAVY, *MODELS, "pyarrow")),
    ],
)
def test_help_loads_no_package_that_it_does_not_need(command: tuple[str, ...], unneeded: tuple[str, ...]) -> None:
    loaded = loaded_by(*command)
    assert {"torch", "lightning", "torchmetrics"} <= loaded
    assert not loaded & set(unneeded)


def test_packages_kept_away_from_torchmetrics_can_be_imported_afterwards() -> None:
    code = """
from commands.start_up import import_torchmetrics_alone
import_torchmetrics_alone()
import sys
assert "torchmetrics" in sys.modules and not {"transformers", "matplotlib", "scipy"} & set(sys.modules)
import lightning.pytorch, matplotlib.pyplot
from lightning_utilities.core.imports import RequirementCache
from transformers import AutoModelForCausalLM
assert RequirementCache("transformers>=4.4") and RequirementCache("matplotlib")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})

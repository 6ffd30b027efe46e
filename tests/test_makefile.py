"""`make demo` picks the demo of a backbone by its name; only what it would run is looked at, nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def dry_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "--dry-run", "demo", *arguments]
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "BACKBONE")  # of the make that runs the suite
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The Makefile beside two demos."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "configs" / "evaluate" / "demo").mkdir(parents=True)
    for name in ("tiny-colar", "tiny-other"):
        (tmp_path / "configs" / "evaluate" / "demo" / f"{name}.yaml").touch()
    for name in ("setup.cfg", "constraints.txt"):
        (tmp_path / name).touch()
    return tmp_path


def test_without_a_backbone_the_demo_is_evaluate_without_arguments(folder: Path) -> None:
    for arguments in ([], ["BACKBONE=tiny-colar"]):
        assert dry_run(folder, *arguments).stdout.rstrip().endswith("python evaluate.py")


def test_every_other_demo_is_a_file_named_after_its_backbone(folder: Path) -> None:
    last = dry_run(folder, "BACKBONE=tiny-other").stdout.rstrip().splitlines()[-1]
    assert last.endswith("python evaluate.py --config configs/evaluate/demo/tiny-other.yaml")


@pytest.mark.parametrize("name", ["tiny-nothing", ""])
def test_an_unknown_backbone_is_refused_before_anything_is_installed(name: str, folder: Path) -> None:
    done = dry_run(folder, f"BACKBONE={name}")
    assert done.returncode == 2 and done.stdout == ""
    assert f"there is no demo of BACKBONE={name}; choose one of: tiny-colar tiny-other." in done.stderr

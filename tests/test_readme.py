"""The README's commands, run as they are typed, on sizes a test can afford."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()

# What each command of the whole way is given on top, in order, so that it takes seconds: sizes, and nothing else.
SMALLER = [
    "--num_examples 60 --model.hidden_size 32 --model.num_layers 1 --model.vocab_size 300",
    "--model.curriculum.cot_epochs 1 --model.curriculum.epochs_per_stage 1 --trainer.max_epochs 5 --data.train_size 32"
    " --data.val_size 4 --model.max_answer_tokens 8 --trainer.devices 1 --trainer.strategy auto",
    "--data.train_size 32 --data.val_size 4 --model.max_answer_tokens 8 --trainer.max_epochs 1 --trainer.devices 1"
    " --trainer.strategy auto",
    "--data.size 24 --model.num_rollouts 4 --model.num_continuations 2 --trainer.devices 1 --trainer.strategy auto",
    "--trainer.max_epochs 1 --data.leave_out_uniform false --data.leave_out_uniform_val false --data.batch_size 4"
    " --data.val_share 0.5 --trainer.devices 1 --trainer.strategy auto",
    "--data.size 4 --model.num_rollouts 4",
]


def commands(text: str) -> list[str]:
    """The command lines of a text's bash blocks, comments left out."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    return [
        line for line in (re.sub(r"\s+#.*", "", line).strip() for line in lines) if line and not line.startswith("#")
    ]


def run(command: str, more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a line as a shell would, but in this process, so that torch is loaded once for all of them."""
    python, *words = shlex.split(f"{command} {more}")
    assert python == "python"
    file, *words = [f"{words[1].replace('.', '/')}.py", *words[2:]] if words[0] == "-m" else words
    monkeypatch.setattr("sys.argv", [file, *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / file), run_name="__main__")
    assert end.value.code == 0, command


def git(*words: str, folder: Path) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # a shell shows them, and goes on
def test_the_whole_way_from_a_random_model_to_a_report(drawn_figures, tmp_path, monkeypatch):
    way = commands(README.split("<!-- whole way: begin -->")[1].split("<!-- whole way: end -->")[0])
    assert len(way) == len(SMALLER)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    git("init", "--quiet", folder=tmp_path)
    before = git("status", "--porcelain", folder=tmp_path)
    monkeypatch.chdir(tmp_path)
    for command, more in zip(way, SMALLER, strict=True):
        run(command, more, monkeypatch)
    # what runs write is ignored, and nothing else is written
    assert git("status", "--porcelain", folder=tmp_path) == before
    metrics = json.loads((tmp_path / "results" / "everything" / "metrics.json").read_text())
    assert metrics["num_problems"] == 4
    assert {"greedy", "majority_voting", "best_of_n_last", "beam_search", "particle_filtering"} <= set(
        metrics["accuracy"]
    )


def test_the_notebook_lines_run(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(ROOT)
    if not (ROOT / "checkpoints" / "tiny-latent-rm").is_dir():
        pytest.skip("no shipped reward model")
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["answers"] == [2.0]  # 16 / 4 / 2
    assert names["scores"].shape == names["rollouts"].latents.shape[:3] == (1, 64, 6)


def test_every_file_and_folder_the_readme_names_is_there():
    named = re.findall(r"(?<!/)\b(?:configs|checkpoints|docs|benchmarks|tests)/[\w./-]*", README)
    missing = sorted({name for name in named if not (ROOT / name.rstrip("./")).exists()})
    assert not missing

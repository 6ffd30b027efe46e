"""A training goes to the hub with a card that says what its run says; a dry run uploads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from commands.export import main as export
from commands.guard import main_guard
from latent_tts.evaluation.run_folder import write_run

RUN = {
    "settings": {"model.class_path": "lightning_modules.CoconutModule", "data.init_args.source": "gsm-symbolic"},
    "state": "finished",
    "steps": 70,
    "best": {"metric": "val/accuracy", "value": 0.4125},
}


class FakeHub:
    """Keeps what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
        self.asked.append((name, private, exist_ok))

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> str:
        self.asked.append((repo_id, {path.name: path.read_text() for path in folder_path.iterdir()}))
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def hub(monkeypatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return fake


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A training whose export is one small file."""

    def write(run: Path, out: Path, *_: Any) -> None:
        out.mkdir(parents=True)
        (out / "model.safetensors").write_text("weights")

    monkeypatch.setattr("commands.export.export_run", write)
    write_run(tmp_path / "run", RUN)
    return tmp_path / "run"


def test_model_and_card_are_uploaded(run, hub, capsys):
    assert main_guard(lambda: export([str(run), "--push", "me/small", "--private"])) == 0
    assert hub.asked[0] == ("me/small", True, True)
    name, files = hub.asked[1]
    assert name == "me/small" and files["model.safetensors"] == "weights"
    card = files["README.md"]
    assert "CoconutModule" in card and "`val/accuracy`: 0.4125" in card and "optimizer steps: 70" in card
    assert "https://hub/me/small" in capsys.readouterr().out


def test_a_dry_run_lists_the_files_and_uploads_nothing(run, hub, capsys):
    assert main_guard(lambda: export([str(run), "--push", "me/small", "--dry_run"])) == 0
    shown = capsys.readouterr().out
    assert "model.safetensors (7 bytes)" in shown and "README.md (" in shown and not hub.asked


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--push", "small"], "--push takes OWNER/NAME of a hub repository, got 'small'"),
        ([], "Give --out FOLDER, or --push OWNER/NAME"),
        (["--out", "x", "--dry_run"], "Give --out FOLDER, or --push OWNER/NAME"),
    ],
)
def test_what_cannot_be_pushed_is_one_sentence(run, hub, capsys, words, sentence):
    assert main_guard(lambda: export([str(run), *words])) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not hub.asked

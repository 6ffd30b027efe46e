"""What a run sums up at its end is all that its ranks have finished, or it says so and loses nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from callbacks.prediction_writer import PredictionWriter
from commands.evaluate import EvaluationCLI
from commands.guard import main_guard
from commands.report import main as report
from latent_tts.evaluation.records import Record

pytestmark = pytest.mark.slow


@pytest.fixture
def command(tiny_checkpoint, problem_file, tmp_path, monkeypatch) -> list[str]:
    """Without figures, which take most of the time."""
    monkeypatch.setattr("latent_tts.evaluation.report.files.figures", lambda *_: {})
    return [
        f"--model.backbone={tiny_checkpoint}", f"--data.source={problem_file}", "--data.limit=5", "--data.batch_size=2",
        "--model.num_rollouts=2", "--model.max_answer_tokens=4", "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false", f"--output={tmp_path / 'run'}",
    ]  # fmt: skip


def evaluate(command: list[str]) -> int:
    return main_guard(lambda: EvaluationCLI(command).run())


def records_of(run: Path) -> Path:
    return run / "predictions" / "rank-00000.jsonl"


def after_the_writing(monkeypatch, change) -> None:
    """Something happens to the disk between the last record and the summing up."""
    finish = PredictionWriter.on_predict_end

    def finish_and_change(self, trainer, module):
        finish(self, trainer, module)
        change(self)

    monkeypatch.setattr(PredictionWriter, "on_predict_end", finish_and_change)


def test_bytes_that_are_not_seen_in_time_end_the_run_with_the_way_to_its_report(command, tmp_path, monkeypatch, capsys):
    """The last 40 bytes stay away, as those of another machine's memory; later the report is that of all records."""
    whole: list[bytes] = []

    def hide(writer: PredictionWriter) -> None:
        path = records_of(tmp_path / "run")
        whole.append(path.read_bytes())
        path.write_bytes(whole[0][:-40])

    after_the_writing(monkeypatch, hide)
    monkeypatch.setattr("latent_tts.evaluation.record_reading.time.sleep", lambda _: None)
    monkeypatch.setattr("latent_tts.evaluation.record_reading.RecordFiles.wait_until_seen.__defaults__", (0.0,))
    assert evaluate(command) == 2
    error = capsys.readouterr().err
    seen = f"has {len(whole[0])} bytes, of which this process sees {len(whole[0]) - 40}: the records are on disk, and"
    assert seen in error and f"`python evaluate.py report {tmp_path / 'run'}` sums them up" in error
    assert not (tmp_path / "run" / "metrics.json").exists()
    records_of(tmp_path / "run").write_bytes(whole[0])
    assert main_guard(lambda: report([str(tmp_path / "run")])) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_problems"] == 5


def test_fewer_problems_than_are_known_to_be_done_are_not_reported_on(command, tmp_path, monkeypatch, capsys):
    """A line is lost between writing and reading, and the sizes with it."""

    def lose(writer: PredictionWriter) -> None:
        ((path, _),) = writer.files.files
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
        writer.files = type(writer.files).of([path])

    after_the_writing(monkeypatch, lose)
    assert evaluate(command) == 2
    assert "4 problems are read back, of 5 that are done: the records are on disk" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_every_record_is_read_once_at_the_end_and_once_when_a_run_goes_on(command, tmp_path, monkeypatch):
    read: list[str] = []
    from_json = Record.from_json
    monkeypatch.setattr(Record, "from_json", lambda line: read.append(line["problem_id"]) or from_json(line))
    assert evaluate(command) == 0
    ids = [json.loads(line)["problem_id"] for line in records_of(tmp_path / "run").read_text().splitlines()]
    assert len(ids) == 5 and read == ids
    read.clear()
    assert evaluate(command) == 0
    assert read == ids * 2


def test_the_records_are_on_the_disk_before_they_are_read(command, tmp_path, monkeypatch):
    synced: list[str] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    known: list[tuple[bool, int, int]] = []

    def look(writer: PredictionWriter) -> None:
        known.append((str(records_of(tmp_path / "run")) in synced, writer.files.num_bytes, writer.num_problems))

    after_the_writing(monkeypatch, look)
    assert evaluate(command) == 0
    assert known == [(True, records_of(tmp_path / "run").stat().st_size, 5)]

"""Situations that people have reported of projects like this one, each by its script or file, give what is right."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from commands import report
from commands.annotate import AnnotationCLI
from commands.evaluate import EvaluationCLI
from commands.guard import main_guard
from commands.retired import without_retired
from commands.train import CONFIGS, TrainingCLI
from tests.recipes import arguments, run, workplace

CASES = Path(__file__).parent / "data" / "cases"


def test_an_old_command_line_is_taken_with_a_word_on_what_has_no_effect_any_more(capsys):
    """As the case of a scheduler's signal gives it."""
    args = ["--model.num_rollouts", "2", "--model.num_bootstrap", "100", "--data.size=6", "--model.num_bootstrap=5"]
    assert without_retired(args) == ["--model.num_rollouts", "2", "--data.size=6"]
    assert (
        capsys.readouterr().err.count("--model.num_bootstrap has no effect any more: intervals are closed forms") == 2
    )


ROOM = "Größe und Maß"  # a folder with blanks and umlauts
# The case, and what the sentence about it holds: the entry, the reason, what there is
CONFIGURATIONS = {
    "monitor.yaml": "EarlyStopping monitors 'val_loss', which nobody logs; there are: train/loss",
    "callback_typo.yaml": "callbacks.ModelChekpoint' (did you mean ModelCheckpoint?)",
    "callback_argument.yaml": "save_best_only (did you mean save_weights_only?)",
    "accumulate.yaml": "give --model.global_batch_size",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_that_cannot_work_ends_before_anything_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = ["fit", f"--config={CONFIGS / 'tiny-coconut.yaml'}", f"--config={CASES / name}", "--model.backbone=nowhere"]
    assert main_guard(lambda: TrainingCLI(args)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and CONFIGURATIONS[name] in said
    assert not list(tmp_path.iterdir())


@pytest.fixture
def told():
    """What Lightning says in the course of a run, where profilers print."""
    kept: list[str] = []

    class Keeps(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record.getMessage())

    log, handler = logging.getLogger("lightning.pytorch.profilers.profiler"), Keeps()
    log.addHandler(handler)
    yield kept
    log.removeHandler(handler)


@pytest.fixture
def options(tiny_checkpoint, tmp_path, monkeypatch) -> list[str]:
    """A small run whose backbone, data and results lie in a folder with blanks and umlauts, on a terminal of 60 columns."""
    room = tmp_path / ROOM
    shutil.copytree(tiny_checkpoint, room / "mein Modell")
    shutil.copy(CASES / "relabelled_before.jsonl", room / "Aufgaben ä.jsonl")
    monkeypatch.chdir(room)
    monkeypatch.setenv("COLUMNS", "60")
    return [
        "--model.backbone=mein Modell",
        "--data.source=Aufgaben ä.jsonl",
        "--model.num_rollouts=2",
        "--model.max_answer_tokens=4",
        "--trainer.accelerator=cpu",
    ]


def records(folder: Path) -> list[dict]:
    files = sorted((folder / "predictions").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_golds_that_were_corrected_are_judged_anew_in_a_folder_with_umlauts(options, told, capsys):
    """The same command again: other golds, the same rollouts; then its report from records alone."""
    evaluate = [*options, "--output=Ergebnisse ß", "--trainer.profiler=simple", "--trainer.logger=false"]
    assert main_guard(lambda: EvaluationCLI(evaluate).run()) == 0
    before = records(Path("Ergebnisse ß"))
    assert "Profiler Report" in " ".join(told)  # an option that works, not one without effect
    shutil.copy(CASES / "relabelled_after.jsonl", "Aufgaben ä.jsonl")
    assert main_guard(lambda: EvaluationCLI(evaluate).run()) == 0
    after = records(Path("Ergebnisse ß"))
    golds = [float(json.loads(line)["answer"]) for line in (CASES / "relabelled_after.jsonl").read_text().splitlines()]
    assert sorted(record["gold"] for record in after) == sorted(golds)
    assert sorted(record["gold"] for record in before) != sorted(golds)
    texts = [{r["problem_id"]: [one["text"] for one in r["rollouts"]] for r in found} for found in (before, after)]
    assert texts[0] == texts[1]
    assert main_guard(lambda: report.main(["Ergebnisse ß"])) == 0
    assert "Ergebnisse ß" in capsys.readouterr().out


@pytest.mark.slow
def test_rollouts_are_annotated_in_a_folder_with_umlauts_with_a_profiler_and_no_logger(options, told, capsys):
    flags = ["--trainer.profiler=simple", "--trainer.logger=false"]
    annotate = [*options, *flags, "--output=Werte ü", "--model.num_continuations=1"]
    assert main_guard(lambda: AnnotationCLI(annotate).run()) == 0
    assert "2 annotated problems in Werte ü" in capsys.readouterr().out
    assert "Profiler Report" in " ".join(told)


@pytest.mark.slow
def test_a_training_runs_in_a_folder_with_umlauts_with_limits_a_profiler_and_no_logger(tmp_path, monkeypatch, told):
    own = workplace(tmp_path / ROOM)
    flags = {"limit_train_batches": 1, "limit_val_batches": 1, "logger": "false", "profiler": "simple", "max_epochs": 1}
    given = [word for name, value in flags.items() for word in (f"--trainer.{name}", str(value))]
    monkeypatch.chdir(own)
    assert run(*arguments(own, "tiny-cot"), *given, monkeypatch=monkeypatch) == 0
    assert "Profiler Report" in " ".join(told)
    last = torch.load(own / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 1  # one batch: the limit was kept
    assert (own / "run" / "model" / "model.safetensors").exists() and not (own / "run" / "tensorboard").exists()

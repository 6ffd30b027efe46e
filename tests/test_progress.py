"""Progress: a bar in a terminal of any width, plain lines at a bounded rate without one, never both."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console

import callbacks.progress as progress
from callbacks.progress import ProblemProgress, problem_progress
from callbacks.progress_lines import Pace, ProblemLines, TrainingLines
from callbacks.training_progress import TrainingProgress, training_progress
from commands.train import TrainingCLI
from tests.training import make_data, make_module, make_trainer, write_tiny_model

NEWS = "greedy 100 % · majority voting @ 1024 100 % · coverage @ 1024 100 %"


class Clock:
    """Seconds that pass only where a test lets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Module:
    """Counts problems as the modules of evaluation and annotation do."""

    def __init__(self, done: int = 0) -> None:
        self.metrics = SimpleNamespace(num_problems=done)

    def progress_news(self) -> str:
        return NEWS


def make_run(total: int | None) -> Any:
    return SimpleNamespace(datamodule=SimpleNamespace(problems=None, num_problems=total), world_size=1)


def lines_of(capsys: Any, total: int | None, seconds_each: float, before: int = 0, problems: int = 100) -> list[str]:
    """What a run prints whose problems take so long."""
    clock, module, run = Clock(), Module(before), make_run(total)
    lines: Any = ProblemLines(clock)
    lines.on_predict_start(run, module)
    for _ in range(problems):
        clock.now += seconds_each
        module.metrics.num_problems += 1
        lines.on_predict_batch_end(run, module)
    lines.on_predict_end(run, module)
    return capsys.readouterr().out.splitlines()


def test_a_quick_run_prints_a_line_every_twentieth(capsys: Any) -> None:
    lines = lines_of(capsys, total=100, seconds_each=0.1)
    assert len(lines) == 22  # the first and the last beside twenty
    assert [line.split(" ")[0] for line in lines[:4]] == ["0/100", "5/100", "10/100", "15/100"]


def test_a_slow_run_prints_a_line_every_half_minute(capsys: Any) -> None:
    lines = lines_of(capsys, total=100_000, seconds_each=10.0)
    assert [line.split("/")[0] for line in lines[:4]] == ["0", "3", "6", "9"]
    assert len(lines) == 2 + 33


def test_a_run_of_unknown_length_prints_by_the_clock_alone(capsys: Any) -> None:
    lines = lines_of(capsys, total=None, seconds_each=1.0)
    assert [line.split(" ")[0] for line in lines] == ["0", "30", "60", "90", "100"]
    assert not any("left" in line for line in lines)


def test_a_line_has_count_rate_times_and_running_figures(capsys: Any) -> None:
    assert lines_of(capsys, total=100, seconds_each=0.5)[5] == (
        f"25/100 problems · 2.00 problems/s · 0:00:12 gone, 0:00:38 left · {NEWS}"
    )


def test_rate_and_time_left_do_not_count_what_an_earlier_run_has_done(capsys: Any) -> None:
    line = lines_of(capsys, total=100, seconds_each=2.0, before=80, problems=10)[1]
    assert line.startswith("85/100 problems · 2.00 s/problem · 0:00:10 gone, 0:00:30 left")


def test_other_ranks_print_nothing(capsys: Any) -> None:
    lines: Any = ProblemLines(Clock())
    lines.disable()
    lines.on_predict_start(make_run(3), Module())
    assert capsys.readouterr().out == ""


def test_a_pace_prints_the_line_that_is_late_once() -> None:
    clock = Clock()
    pace = Pace(clock, seconds=30, share=0.5)
    clock.now += 100
    assert [pace.is_due(0.1), pace.is_due(0.1)] == [True, False]


@pytest.mark.parametrize("terminal", [True, False])
def test_there_is_a_bar_in_a_terminal_and_lines_elsewhere(terminal: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(progress, "in_terminal", lambda: terminal)
    assert isinstance(problem_progress(), ProblemProgress if terminal else ProblemLines)


def drawn(width: int) -> str:
    """What the bar shows in a terminal of this width."""
    bar: Any = ProblemProgress()
    screen = io.StringIO()
    run, module = make_run(1319), Module(1200)
    bar.on_predict_start(run, module)
    module.metrics.num_problems = 1219
    bar._show(module)
    renderables = list(bar._progress.get_renderables())
    bar._stop()
    console = Console(file=screen, width=width)
    for one in renderables:
        console.print(one)
    return screen.getvalue()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_count_rate_times_and_figures_fit_a_terminal(width: int) -> None:
    shown = drawn(width)
    bar, *news = shown.splitlines()
    assert "1219/1319" in bar and "problems/s" in bar and "…" not in shown
    assert " ".join(line.strip() for line in news) == NEWS and len(news) == (2 if width < len(NEWS) else 1)
    assert all(len(line) <= width for line in (bar, *news))


# Training -------------------------------------------------------------------------------------------------------------


def test_a_training_prints_where_it_is_and_its_running_figures(tmp_path: Path, capsys: Any) -> None:
    clock = Clock()
    lines = TrainingLines(clock)
    data, module = make_data(tmp_path, batch_size=8), make_module(write_tiny_model(tmp_path / "model"))
    trainer = make_trainer(max_epochs=3, callbacks=[lines], enable_progress_bar=True)
    capsys.readouterr()
    trainer.fit(module, data)
    printed = [line for line in capsys.readouterr().out.splitlines() if "gone" in line]
    assert [line.split(" · ")[0] for line in printed] == [
        *(f"epoch {e}/3, batch {b}/2, step {2 * e + b - 2}" for e in (1, 2, 3) for b in (1, 2)),
        "training ends, step 6",
    ]
    assert "train/loss" in printed[0] and "stage" in printed[0] and "val/accuracy" in printed[-1]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_training_shows_where_it_is_in_a_terminal_of_any_width(width: int, tmp_path: Path) -> None:
    class Shown(TrainingProgress):
        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            assert self._bar is not None
            console = Console(file=screen, width=width)
            for one in self._bar.get_renderables():
                console.print(one)

    screen = io.StringIO()
    data, module = make_data(tmp_path, batch_size=8), make_module(write_tiny_model(tmp_path / "model"))
    make_trainer(max_epochs=1, callbacks=[Shown(every=0)], enable_progress_bar=True).fit(module, data)
    shown = " ".join(screen.getvalue().split())
    assert "50 %" in shown and "100 %" in shown and "epoch 1/1, batch 2/2 · step 2" in shown and "train/loss" in shown
    assert all(len(line) <= width for line in screen.getvalue().splitlines()) and "…" not in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_a_training_has_a_bar_in_a_terminal_and_lines_elsewhere(terminal: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr("callbacks.training_progress.in_terminal", lambda: terminal)
    assert type(training_progress()) is (TrainingProgress if terminal else TrainingLines)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, True), ({"enable_progress_bar": False}, False), ({"callbacks": [ProgressBar()]}, False)],
)
def test_a_bar_that_was_given_or_refused_is_taken_at_its_word(options: Any, expected: bool) -> None:
    assert TrainingCLI._wants_progress({"callbacks": None, "enable_progress_bar": None} | options) is expected

"""`evaluate.py inspect`: every rollout of one problem in the width there is, and one sentence where no one problem is meant."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from commands.guard import main_guard
from commands.inspect import main as inspect
from latent_tts.errors import UserError
from latent_tts.evaluation.prediction_files import RecordWriter, prediction_path
from latent_tts.evaluation.problem_outcomes import FILTERS, ProblemOutcome
from latent_tts.evaluation.problem_search import find_problem
from latent_tts.evaluation.report.problem_console import print_list, print_problem, printable, shown, spark
from latent_tts.evaluation.strategies import GREEDY, SINGLE
from tests.records import make_record
from tests.test_remake import RECORDS, run

__all__ = ["run"]  # the fixture: a folder of nine problems

ASKED = [
    replace(make_record(seed), problem_id=problem_id, question=question)
    for seed, (problem_id, question) in enumerate(
        [("ab12", "Ann has 3 apples."), ("2", "Bob has 5 pens."), ("cd34", "Ann buys 7 pens.")]
    )
]


@pytest.mark.parametrize(
    ("asked", "number"),
    [("ab12", 1), ("2", 2), ("1", 1), ("3", 3), ("apples", 1), ("BUYS", 3), ("5 pens", 2), ("cd3", 3)],
)
def test_a_problem_is_found_by_id_then_number_then_piece(asked, number):
    assert find_problem(ASKED, asked, "runs/x") == (number, ASKED[number - 1])


def test_an_id_goes_before_a_number_that_is_written_alike():
    assert find_problem(ASKED[::-1], "2", "runs/x")[1].question == "Bob has 5 pens."
    assert find_problem([ASKED[1], ASKED[0]], "2", "runs/x") == (1, ASKED[1])


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ("pens", r"2 problems of runs/x hold 'pens': .* such as 2 \(2, \"Bob has 5 pens\.\"\); 3 \(cd34"),
        ("ann sells", r"No problem of runs/x has the id 'ann sells'.*\(there are 3\).*Near ones: 1 .*; 3 "),
        ("cd99", r"No problem .* Near ones: 3 \(cd34"),
        ("4", r"No problem .*there are 3\).* question\.$"),
        ("", r"No problem "),
    ],
)
def test_what_names_none_or_several_is_refused_with_near_ones(asked, pattern):
    with pytest.raises(UserError) as refused:
        find_problem(iter(ASKED), asked, "runs/x")
    assert re.search(pattern, str(refused.value)) and "\n" not in str(refused.value)


def text_of(print_it, *args, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_it(*args, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_every_rollout_is_shown_whole_in_any_width(width):
    record = make_record(3, num_rollouts=12, num_steps=40)
    rollouts = tuple(
        replace(one, text=f"because {'so ' * 30}[bold] it is {i}") for i, one in enumerate(record.rollouts)
    )
    text = text_of(
        print_problem, 4, ProblemOutcome(replace(record, rollouts=rollouts), [GREEDY], "tolerance"), width=width
    )
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert text.count("[bold]") == 12 and text.count("because") == 12
    for rollout in record.rollouts:
        assert f"{sum(rollout.step_scores or ()):.2f}" in text


def test_a_problem_without_scores_has_no_column_of_them():
    text = text_of(print_problem, 1, ProblemOutcome(make_record(0, scored=False), [GREEDY]))
    assert "score" not in text.replace("mean score", "") and "### 1" in text


def test_nothing_of_a_text_reaches_the_terminal_as_a_command():
    record = replace(make_record(0), question="red \x1b[31m\x07 [red]not[/red]\ttab")
    text = text_of(print_problem, 1, ProblemOutcome(record, [GREEDY]))
    assert "\x1b" not in text and "\\x1b[31m\\x07 [red]not[/red]\\ttab" in text
    assert printable("é✓\n") == "é✓\n"


def test_scores_are_drawn_from_the_lowest_to_the_highest_sign():
    assert spark([-1.0, 0.0, 1.0], extent=1.0) == "▁▅█"
    assert spark([-1.0, 1.0, 1.0], extent=1.0, per_sign=2) == "▅█"
    assert spark([0.0], extent=0.0) == "▅" and spark([], extent=1.0) == ""
    assert [shown(answer) for answer in (None, 72.0, 0.5, 1e300)] == ["-", "72", "0.5", "1e+300"]


@pytest.mark.parametrize("name", FILTERS)
def test_a_list_holds_the_problems_that_its_filter_lets_through(name):
    outcomes = [ProblemOutcome(record, [GREEDY]) for record in RECORDS]
    expected = [i for i, one in enumerate(outcomes, start=1) if name in one.filters]
    *lines, last = text_of(print_list, outcomes, name).splitlines()
    assert [int(line.split()[0]) for line in lines] == expected
    assert last == f"{len(expected)} of 9 problems ({FILTERS[name].label})"
    assert SINGLE not in [choice.strategy for choice in outcomes[0].choices]


def test_the_command_shows_a_problem_and_lists_them(run: Path, capsys):
    assert main_guard(lambda: inspect([str(run), "problem-4"])) == 0
    shown_problem = capsys.readouterr().out
    assert "What is 4?" in shown_problem and "best-of-N @ 4 (mean)" in shown_problem and "beam search" in shown_problem
    assert main_guard(lambda: inspect([str(run)])) == 0
    assert "9 of 9 problems (all)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["problem-4", "--show", "wrong"], "--show lists problems, and PROBLEM names one of them"),
        (["--show", "strange"], "invalid choice: 'strange'"),
        (["nothing like it"], "No problem of"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_a_sentence(run, capsys, args, sentence):
    assert main_guard(lambda: inspect([str(run), *args])) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_folder_without_a_run_or_without_records_is_refused(tmp_path, run, capsys):
    assert main_guard(lambda: inspect([str(tmp_path / "nowhere")])) == 2
    for rank in range(2):
        prediction_path(run, rank).unlink()
    assert main_guard(lambda: inspect([str(run)])) == 2
    assert "holds no record yet" in capsys.readouterr().err


def test_records_of_several_files_are_numbered_in_the_order_of_the_files(run, capsys):
    """Rank 0 has problems 0, 2, 4, 6, 8 and rank 1 the others: number 6 is problem 1."""
    assert main_guard(lambda: inspect([str(run), "6"])) == 0
    assert "What is 1?" in capsys.readouterr().out
    writer = RecordWriter(prediction_path(run, 2))
    writer.append(replace(RECORDS[0], problem_id="last"))
    writer.close()
    assert main_guard(lambda: inspect([str(run), "10"])) == 0
    assert "last" in capsys.readouterr().out

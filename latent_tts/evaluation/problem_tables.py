"""Tables of what several runs show problem by problem: diversity against success, and risk against the share answered."""

from __future__ import annotations

from collections.abc import Mapping

from latent_tts.evaluation.comparison import ComparedRun, Comparison
from latent_tts.evaluation.problem_statistics import GIVEN_GREEDY, GIVEN_OTHERS, PLAIN
from latent_tts.evaluation.results import Cell
from latent_tts.metrics.intervals import Interval

Rows = list[list[str]]

SPREAD = "How many different answers, and how much of coverage is luck"
DIVERSITY = "Does diversity go with success?"
RISK = "Withholding answers"
READING = {
    SPREAD: "Different answers of a problem's rollouts in the mean, and the share of problems whose gold answer stands among "
    "those of another problem's rollouts: what coverage comes to without having thought about the question; and the share of the "
    "numbers 1 or 2 beside the gold answer that stand among a problem's own: what it comes to by answers about as large.",
    DIVERSITY: "Rank correlation over problems of the diversity of a problem's rollouts with how often they are right: as it "
    "is, and with difficulty taken away, as the greedy answer or the mean success of the other runs tells it.",
    RISK: "Wrong answers in percent where only the problems of the highest confidence are answered, and the area under that "
    "curve.",
}
"""What each table shows."""
_SHARES = (1.0, 0.8, 0.5, 0.2)


def problem_tables(comparison: Comparison) -> Mapping[str, tuple[list[str], Rows]]:
    """Title -> header and rows, of the tables that have something to show."""
    tables = {SPREAD: _spread(comparison), DIVERSITY: _diversity(comparison), RISK: _risk(comparison)}
    return {title: found for title, found in tables.items() if found[1]}


def _spread(comparison: Comparison) -> tuple[list[str], Rows]:
    rows = []
    for run in comparison.runs:
        found = run.problems
        if found is not None and found.luck is not None and found.near_miss is not None:
            shares = [Cell(share, None, None).percent() for share in (found.luck, found.near_miss)]
            rows.append([run.label, f"{found.different_answers:.1f}", *shares, _covered(run)])
    header = ["run", "different answers", "coverage by another problem's", "of a number beside the gold answer"]
    return [*header, "its own coverage"], rows


def _covered(run: ComparedRun) -> str:
    return next(row.accuracy.percent() for row in run.results() if row.strategy.kind == "coverage")


def _diversity(comparison: Comparison) -> tuple[list[str], Rows]:
    header = ["run", "outcome", "problems", "as it is", "given the greedy answer", "given the other runs"]
    rows = []
    for run in comparison.runs:
        for outcome, found in {} if run.problems is None else run.problems.correlations.items():
            if run.problems and found[PLAIN].mean == found[PLAIN].mean:
                shown = [correlation_text(found.get(given)) for given in (PLAIN, GIVEN_GREEDY, GIVEN_OTHERS)]
                rows.append([run.label, outcome, str(run.problems.num_problems), *shown])
    return header, rows


def correlation_text(found: Interval | None) -> str:
    """`+0.12 (-0.02 to +0.25)`, empty where it is unknown."""
    if found is None or found.mean != found.mean:
        return ""
    return f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def _risk(comparison: Comparison) -> tuple[list[str], Rows]:
    header = ["run", "rule", "area", *(f"{100 * share:.0f} % answered" for share in _SHARES)]
    rows = [
        [run.label, rule, f"{risk.area:.3f}", *(f"{Cell(*risk.at[share]).text(' (')})" for share in _SHARES)]
        for run in comparison.runs
        if run.problems is not None
        for rule, risk in run.problems.risks.items()
    ]
    return header, rows

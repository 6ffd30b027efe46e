"""Several runs side by side, problem by problem: what each reaches, and how far from one of them, the baseline.

Every figure of a run is what its own report says of the same problems: it is made by the same way, `ReadRun.metrics`.
Differences are paired: a strategy's value on a problem minus the baseline's on the same problem, so that what problems have in
common cancels out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from latent_tts.errors import UserError
from latent_tts.evaluation.paired_runs import PairedRuns, ReadBeside, full_key
from latent_tts.evaluation.problem_statistics import ProblemStatistics, problem_statistics
from latent_tts.evaluation.record_table import table_of_rows
from latent_tts.evaluation.records import Record, rounded
from latent_tts.evaluation.remake import AS_RUN, Reading, ReadRun
from latent_tts.evaluation.results import Cell, Metrics, StrategyResult, results
from latent_tts.evaluation.run_labels import run_labels, run_names
from latent_tts.evaluation.strategies import Strategy
from latent_tts.metrics.intervals import Interval


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison."""

    name: str
    """Its folder's name, with as much of the path before it as tells the runs apart."""
    path: Path
    label: str
    """In what it differs from the others, such as `sigma=0.3`; its name where that says nothing."""
    metrics: Metrics
    """The content of metrics.json for the problems compared."""
    differences: Mapping[Strategy, Interval]
    """Paired differences to the baseline run, of the strategies (coverage among them) that both have, at equal budgets."""
    full_differences: Mapping[str, Interval]
    """The same by `Strategy.method`, each run at its own full budget; of searches by `Strategy.key`."""
    problems: ProblemStatistics | None = None
    """What it shows problem by problem."""
    num_left_out: int = 0
    """Its problems that the others have not."""

    def results(self) -> list[StrategyResult]:
        """Every strategy at its full budget, coverage last."""
        return results(self.metrics)

    def difference(self, strategy: Strategy) -> Cell | None:
        """To the baseline at each run's full budget; None where the baseline has no such strategy, or is this run."""
        found = self.full_differences.get(full_key(strategy))
        return None if found is None else Cell(*found)


@dataclass(frozen=True)
class ComparisonRow:
    """One strategy of one run, at its full budget."""

    run: ComparedRun
    result: StrategyResult
    difference: Cell | None


@dataclass(frozen=True)
class Comparison:
    """Runs on the same problems."""

    runs: tuple[ComparedRun, ...]
    baseline: int
    """Number of the run that the others are compared with."""
    num_problems: int

    @property
    def baseline_run(self) -> ComparedRun:
        """What the others are compared with."""
        return self.runs[self.baseline]

    def rows(self) -> Iterator[ComparisonRow]:
        """By strategy, in the order in which the runs report them, and of each strategy by run."""
        found = [(run, result) for run in self.runs for result in run.results()]
        order = list(dict.fromkeys(full_key(result.strategy) for _, result in found))
        for run, result in sorted(found, key=lambda pair: _place(order, pair[1].strategy)):
            yield ComparisonRow(run, result, run.difference(result.strategy))

    def to_json(self) -> dict[str, Any]:
        """The content of comparison.json."""
        return {
            "baseline": self.baseline_run.name,
            "num_problems": self.num_problems,
            "runs": [
                {
                    "name": run.name,
                    "path": run.path.as_posix(),
                    "label": run.label,
                    "num_left_out": run.num_left_out,
                    "differences": {one.key: _plain(found) for one, found in run.differences.items()},
                    "full_differences": {key: _plain(found) for key, found in run.full_differences.items()},
                    "problems": None if run.problems is None else run.problems.to_json(),
                    "metrics": run.metrics,
                }
                for run in self.runs
            ],
        }


def compare(
    runs: Sequence[Path], reading: Reading = AS_RUN, baseline: Path | None = None, common: bool = False
) -> Comparison:
    """Compares runs on their problems; memory holds a row of every problem and run, never the records.

    Args:
        runs: Folders of evaluations, each once.
        reading: How the records are read.
        baseline: One of them, by default the first.
        common: Whether problems that not all runs have (with the same question and gold answer) are left out.

    Raises:
        UserError: A folder holds no evaluation or comes twice, the baseline is none of them, they are judged by different
            rules, or their problems differ and ``common`` is not given.
    """
    first = _place_of(baseline, runs)
    read = [ReadRun(run, reading) for run in runs]
    _check_rules(read)
    names, labels = run_names(runs), run_labels([run.described for run in read])
    problems = [_problems(run) for run in read]
    shared = _shared(problems, names, first, common)
    pairs = PairedRuns(read[first], shared)
    found = [pairs.baseline() if i == first else pairs.compared(run) for i, run in enumerate(read)]
    statistics = _statistics(found)
    compared = [
        ComparedRun(name, path, label or name, one.metrics, one.equal, one.full, shown, len(own) - len(shared))
        for name, path, label, one, shown, own in zip(names, runs, labels, found, statistics, problems, strict=True)
    ]
    return Comparison(tuple(compared), first, len(shared))


def _statistics(found: Sequence[ReadBeside]) -> list[ProblemStatistics]:
    """Of every run beside the others, in the order of the first one's problems."""
    order = list(found[0].rows)
    tables = [table_of_rows([run.rows[problem_id] for problem_id in order]) for run in found]
    answers = [[run.answers[problem_id] for problem_id in order] for run in found]
    return [problem_statistics(table, [*tables[:i], *tables[i + 1 :]], answers[i]) for i, table in enumerate(tables)]


def _place_of(baseline: Path | None, runs: Sequence[Path]) -> int:
    resolved = [run.resolve() for run in runs]
    twice = next((run for run, path in zip(runs, resolved, strict=True) if resolved.count(path) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice: name each run once.")
    if baseline is None:
        return 0
    if baseline.resolve() not in resolved:
        raise UserError(f"--baseline {baseline} is none of the runs compared: {', '.join(map(str, runs))}.")
    return resolved.index(baseline.resolve())


def _check_rules(runs: Sequence[ReadRun]) -> None:
    rules = {run.answer_rule: run for run in runs}
    if len(rules) > 1:
        said = ", ".join(f"{rule} in {run.folder}" for rule, run in rules.items())
        raise UserError(f"The runs are judged by different rules ({said}): give --answer_rule for all of them.")


# Problems -----------------------------------------------------------------------------------------------------------


def _problems(run: ReadRun) -> dict[str, bytes]:
    """A digest of question and gold answer by problem id."""
    found = {record.problem_id: _digest(record) for record in run.records()}
    if not found:
        raise UserError(f"{run.folder} holds no record yet: let the evaluation run first.")
    return found


def _digest(record: Record) -> bytes:
    return blake2b(f"{record.question}\0{record.gold!r}".encode(), digest_size=16).digest()


def _shared(problems: Sequence[dict[str, bytes]], names: Sequence[str], first: int, common: bool) -> set[str]:
    """Ids of the problems that all runs have, alike."""
    shared = {
        problem_id
        for problem_id, digest in problems[first].items()
        if all(other.get(problem_id) == digest for other in problems)
    }
    if not common:
        for name, other in zip(names, problems, strict=True):
            if other != problems[first]:
                raise UserError(_how_they_differ(names[first], problems[first], name, other, len(shared)))
    if not shared:
        raise UserError(f"The runs {', '.join(names)} have no problem in common: compare runs of the same data.")
    return shared


def _how_they_differ(name: str, ours: dict[str, bytes], other: str, theirs: dict[str, bytes], shared: int) -> str:
    changed = sum(problem_id in ours and ours[problem_id] != digest for problem_id, digest in theirs.items())
    phrases = [
        f"{count} only in {where}"
        for count, where in ((len(ours.keys() - theirs.keys()), name), (len(theirs.keys() - ours.keys()), other))
        if count
    ]
    if changed:
        phrases.append(f"{changed} with another question or gold answer")
    way_out = f"give --common to compare the {shared} that all have" if shared else "compare runs of the same data"
    return f"The problems of {name} and {other} differ ({', '.join(phrases)}): {way_out}."


def _place(order: Sequence[str], strategy: Strategy) -> tuple[bool, int]:
    """Coverage, the ceiling, comes last."""
    return strategy.kind == "coverage", order.index(full_key(strategy))


def _plain(interval: Interval) -> dict[str, Any]:
    found: dict[str, Any] = rounded({"mean": interval.mean, "interval": [interval.low, interval.high]})
    return found

"""What a report says of records, gathered in one pass by as many processes as there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from copy import deepcopy
from typing import Self

from latent_tts.evaluation.processes import in_processes, usable_processes
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.remake import ReadRun
from latent_tts.evaluation.report.files import ReportRecords
from latent_tts.evaluation.summary import EvaluationMetrics

_BYTES_A_PROCESS = 6_000_000
"""Below which a further process is not worth its start: about 2,000 records of N = 16, two seconds of work."""


class RunSummary:
    """Metrics of records and what the files of a report hold of them; that of spans in order is that of all records.

    Args:
        metrics: That have counted nothing.
        held: That holds nothing; None where no files are to be written.
    """

    def __init__(self, metrics: EvaluationMetrics, held: ReportRecords | None) -> None:
        self.metrics, self.held = metrics, held

    def empty_part(self) -> RunSummary:
        """What takes in some of the records, to be taken in by this, which has none yet."""
        return RunSummary(deepcopy(self.metrics), None if self.held is None else self.held.empty_part())

    def add_all(self, records: Iterable[Record]) -> Self:
        """Takes in records, judged and chosen from, in one pass."""
        self.metrics.count_all(records if self.held is None else _held(records, self.held))
        return self

    def extend(self, later: RunSummary) -> None:
        """Takes in what follows, of an `empty_part`."""
        self.metrics.extend(later.metrics)
        if self.held is not None and later.held is not None:
            self.held.extend(later.held)


def _held(records: Iterable[Record], held: ReportRecords) -> Iterator[Record]:
    for record in records:
        held.add(record)
        yield record


def summarise(read: ReadRun, whole: RunSummary, num_processes: int | None = None) -> RunSummary:
    """Takes in the records of a run that is read back.

    Args:
        read: The run.
        whole: That has taken in nothing; it is returned.
        num_processes: How many share the work; None takes one a core, and fewer for few records.
    """
    files = read.files()
    number = num_processes or min(usable_processes(), max(1, files.num_bytes // _BYTES_A_PROCESS))

    def records(span: range) -> Iterator[Record]:
        found = files.read(span)
        return read.judged(found) if whole.held is None else read.chosen(found)

    if number == 1:
        return whole.add_all(records(range(files.num_bytes)))
    spans = [files.span(part, number) for part in range(number)]
    with closing(in_processes(lambda span: whole.empty_part().add_all(records(span)), spans)) as parts:
        for part in parts:
            whole.extend(part)
    return whole


def empty_summary(read: ReadRun, with_files: bool) -> RunSummary:
    """What a report of a run takes records into."""
    held = ReportRecords(read.strategies, read.answer_rule) if with_files else None
    return RunSummary(read.empty_metrics(), held)

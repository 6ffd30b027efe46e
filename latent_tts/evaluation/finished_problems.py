"""What a resumed run leaves out: the problems whose records are on disk, judged by the data as they are now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from latent_tts.answers import AnswerRule
from latent_tts.errors import UserError
from latent_tts.evaluation.prediction_files import (
    cut_torn_line,
    prediction_files,
    prediction_path,
    read_records,
    rewrite_records,
)
from latent_tts.evaluation.records import Record


@dataclass(frozen=True)
class Golds:
    """What the data say now: the gold answer of every problem, by its id, and when an answer equals it."""

    by_problem: Mapping[str, float]
    rule: AnswerRule = "tolerance"
    partners: Mapping[str, str] = field(default_factory=dict)
    """Of a control that shuffles latents: by problem id the problem whose thoughts are fed."""

    def up_to_date(self, record: Record) -> Record | None:
        """The record, judged anew where its gold answer was corrected; None where its problem, or the one it is paired with, is
        gone."""
        gold = self.by_problem.get(record.problem_id)
        if gold is None or self.partners.get(record.problem_id) != record.latents_of:
            return None
        return record if gold == record.gold else record.judged(gold, self.rule)


class FinishedProblems:
    """The problems whose records are on disk: what a resumed run leaves out.

    Records of a problem whose gold answer was corrected are judged anew, and those of a problem that is gone are left out, as are
    those that a control has paired with another problem than the data do now, which are drawn again.

    Args:
        output: The run's folder.
        golds: What the data say now; None takes every record as it is.
        rank: This process' rank; with world_size, decides which files' records it counts in its metrics.
        world_size: Number of processes.

    Attributes:
        num_judged_anew: Records on disk whose gold answer was another.
        num_gone: Records on disk of problems that are gone.
        num_unpaired: Records on disk of problems that are paired with another one.
    """

    def __init__(self, output: Path, golds: Golds | None = None, rank: int = 0, world_size: int = 1) -> None:
        self.output, self.golds = output, golds
        files = prediction_files(output)
        mine = self._files_to_mend(files, rank, world_size)
        for path in mine:
            cut_torn_line(path)
        self.files_to_count = files[rank::world_size]  # every record is counted by exactly one rank
        self.ids: set[str] = set()
        self.num_rollouts: dict[str, int] = {}
        self.num_judged_anew = self.num_gone = self.num_unpaired = 0
        self._outdated = [path for path in files if self._read(path) and path in mine]

    def __contains__(self, problem_id: str) -> bool:
        return problem_id in self.ids

    def __len__(self) -> int:
        return len(self.ids)

    def records_to_count(self) -> Iterator[Record]:
        """This rank's share of the records on disk, each record on one rank only."""
        return self._current(self.files_to_count)

    def bring_up_to_date(self) -> None:
        """Rewrites this rank's files whose records are out of date; to be called when every rank has read what is there."""
        for path in self._outdated:
            rewrite_records(path, list(self._current([path])))

    def news(self) -> str:
        """One line on what the data have changed since the records were written; empty where nothing has."""
        changes = {
            "judged anew by a corrected gold answer": self.num_judged_anew,
            "left out, as the problem is gone": self.num_gone,
            "drawn again, as another problem's latents belong to it": self.num_unpaired,
        }
        phrases = [
            f"{count} {'record' if count == 1 else 'records'} {what}" for what, count in changes.items() if count
        ]
        return f"The data have changed since {self.output} was written: {'; '.join(phrases)}." if phrases else ""

    def _read(self, path: Path) -> bool:
        """Takes note of a file's problems; whether any of its records is out of date."""
        changed = False
        for record in read_records([path]):
            if record.problem_id in self.ids:
                raise UserError(
                    f"{self.output} holds problem {record.problem_id} twice: start afresh with another --output."
                )
            current = record if self.golds is None else self.golds.up_to_date(record)
            if current is None and self.golds is not None:
                gone = record.problem_id not in self.golds.by_problem
                self.num_gone, self.num_unpaired = self.num_gone + gone, self.num_unpaired + (not gone)
            elif current is not None:
                self.num_judged_anew += current is not record
                self.ids.add(record.problem_id)
                self.num_rollouts[record.problem_id] = len(record.rollouts)
            changed |= current is not record
        return changed

    def _current(self, files: Iterable[Path]) -> Iterator[Record]:
        for record in read_records(files):
            current = record if self.golds is None else self.golds.up_to_date(record)
            if current is not None:
                yield current

    def _files_to_mend(self, files: Sequence[Path], rank: int, world_size: int) -> list[Path]:
        """This rank's own file; rank 0 also mends those of ranks that no longer exist."""
        alive = [prediction_path(self.output, r) for r in range(world_size)]
        orphans = [path for path in files if path not in alive] if rank == 0 else []
        return [alive[rank], *orphans]

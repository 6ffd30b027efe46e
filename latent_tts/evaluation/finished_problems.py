"""What a resumed run leaves out: the problems whose records are on disk, judged by the data as they are now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latent_tts.answers import AnswerRule
from latent_tts.errors import UserError
from latent_tts.evaluation.prediction_files import cut_torn_line, files_of_rank, rewrite_records
from latent_tts.evaluation.ranks import Exchange, all_of, done_by_all
from latent_tts.evaluation.record_reading import Place, agreed, read_records
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


@dataclass
class Notes:
    """What one rank has seen in its share of the records."""

    num_rollouts: list[tuple[str, int]] = field(default_factory=list)  # of every problem that is up to date, by its id
    num_judged_anew: int = 0
    num_gone: int = 0
    num_unpaired: int = 0
    outdated: set[Path] = field(default_factory=set)  # files with a record that is not as the data say


class FinishedProblems:
    """The problems whose records are on disk: what a resumed run leaves out.

    Records of a problem whose gold answer was corrected are judged anew, and those of a problem that is gone are left out, as are
    those that a control has paired with another problem than the data do now, which are drawn again.

    Every rank reads its share of the records once, and all know what each has seen: to make one is a collective.

    Args:
        output: The run's folder.
        golds: What the data say now; None takes every record as it is.
        rank: This process' rank.
        world_size: Number of processes.
        count: Is handed this rank's share of the records, as the data say, to be gone through to their end.
        exchange: How the ranks hear of each other.

    Attributes:
        num_rollouts: Of every problem, by its id.
        num_judged_anew: Records on disk whose gold answer was another.
        num_gone: Records on disk of problems that are gone.
        num_unpaired: Records on disk of problems that are paired with another one.

    Raises:
        UserError: A problem is there twice, or a file cannot be read; the same on all ranks.
    """

    def __init__(
        self,
        output: Path,
        golds: Golds | None = None,
        rank: int = 0,
        world_size: int = 1,
        count: Callable[[Iterator[Record]], object] = list,
        exchange: Exchange = all_of,
    ) -> None:
        self.output, self.golds = output, golds
        mine = files_of_rank(output, rank, world_size)
        for path in mine:
            cut_torn_line(path)
        files = agreed(mine, exchange)

        def look() -> Notes:
            notes = Notes()
            count(self._noted(files.read_share(rank, world_size, "run the same command again"), notes))
            return notes

        found = done_by_all(look, exchange)
        self.num_rollouts = self._once(one for notes in found for one in notes.num_rollouts)
        self.num_judged_anew = sum(notes.num_judged_anew for notes in found)
        self.num_gone = sum(notes.num_gone for notes in found)
        self.num_unpaired = sum(notes.num_unpaired for notes in found)
        self._outdated = [path for path in mine if any(path in notes.outdated for notes in found)]

    def __contains__(self, problem_id: str) -> bool:
        return problem_id in self.num_rollouts

    def __len__(self) -> int:
        return len(self.num_rollouts)

    def bring_up_to_date(self) -> None:
        """Rewrites this rank's files whose records are out of date: every rank has read what is there."""
        for path in self._outdated:
            current = (self._current(record) for record in read_records([path]))
            rewrite_records(path, [record for record in current if record is not None])

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

    def _noted(self, places: Iterable[tuple[Record, Place]], notes: Notes) -> Iterator[Record]:
        """The records as the data say, those that are left out aside; takes note of all."""
        for record, place in places:
            current = self._current(record)
            if current is not record:
                notes.outdated.add(place.path)
            if current is not None:
                notes.num_judged_anew += current is not record
                notes.num_rollouts.append((record.problem_id, len(record.rollouts)))
                yield current
            elif self.golds is not None:
                gone = record.problem_id not in self.golds.by_problem
                notes.num_gone, notes.num_unpaired = notes.num_gone + gone, notes.num_unpaired + (not gone)

    def _current(self, record: Record) -> Record | None:
        return record if self.golds is None else self.golds.up_to_date(record)

    def _once(self, seen: Iterable[tuple[str, int]]) -> dict[str, int]:
        found: dict[str, int] = {}
        for problem_id, num_rollouts in seen:
            if problem_id in found:
                raise UserError(f"{self.output} holds problem {problem_id} twice: start afresh with another --output.")
            found[problem_id] = num_rollouts
        return found

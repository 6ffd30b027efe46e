"""Finding one problem of a run by what a person knows of it: its id, its number, or a piece of its question."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from latent_tts.errors import UserError
from latent_tts.evaluation.records import Record

_NAMED = 3  # problems that a sentence names


@dataclass(frozen=True, order=True)
class Numbered:
    """A problem by its number, counted from 1 in the order of the records."""

    number: int
    problem_id: str
    question: str

    def __str__(self) -> str:
        question = self.question if len(self.question) <= 50 else self.question[:47] + "..."
        return f'{self.number} ({self.problem_id}, "{question}")'


def find_problem(records: Iterable[Record], asked: str, run: str) -> tuple[int, Record]:
    """The problem with this id; else with this number; else the only one whose id begins so or whose question holds it.

    Args:
        records: Gone through once, one at a time.
        asked: What is known of the problem; upper and lower case are alike in pieces.
        run: Where the records are from, for the sentence.

    Raises:
        UserError: There is none, or more than one; the sentence names some that are meant perhaps.
    """
    piece = asked.strip().casefold()
    by_number: Record | None = None
    by_piece: Record | None = None
    holding: list[Numbered] = []
    near = _Near(piece)
    count = 0
    for count, record in enumerate(records, start=1):
        if record.problem_id == asked:
            return count, record
        numbered = Numbered(count, record.problem_id, record.question)
        if str(count) == piece:
            by_number = record
        if piece and (piece in record.question.casefold() or record.problem_id.casefold().startswith(piece)):
            holding.append(numbered)
            by_piece = record
        near.see(numbered)
    if by_number is not None:
        return int(piece), by_number
    if by_piece is not None and len(holding) == 1:
        return holding[0].number, by_piece
    raise UserError(_several(asked, run, holding) if holding else _none(asked, run, count, near.best()))


def _several(asked: str, run: str, holding: list[Numbered]) -> str:
    some = "; ".join(map(str, holding[:_NAMED]))
    return f"{len(holding)} problems of {run} hold {asked!r}: name one by its number or id, such as {some}."


def _none(asked: str, run: str, count: int, near: list[Numbered]) -> str:
    closest = f" Near ones: {'; '.join(map(str, near))}." if near else ""
    return f"No problem of {run} has the id {asked!r}, this number (there are {count}) or this piece in its question.{closest}"


class _Near:
    """The problems most like what was asked: by common words, or by the beginning of the id."""

    def __init__(self, piece: str) -> None:
        self._piece, self._words = piece, set(piece.split())
        self._heap: list[tuple[float, int, Numbered]] = []

    def see(self, one: Numbered) -> None:
        words = set(one.question.casefold().split())
        common = len(words & self._words) / max(1, len(self._words))
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(self._piece, one.problem_id.casefold(), strict=False))
        start = len(list(pairs)) / max(1, len(self._piece))
        if (likeness := max(common, start)) > 0:
            heapq.heappush(self._heap, (likeness, -one.number, one))
            if len(self._heap) > _NAMED:
                heapq.heappop(self._heap)

    def best(self) -> list[Numbered]:
        return [one for _, _, one in heapq.nlargest(_NAMED, self._heap)]

"""The problems of report.html: compressed pages that the browser takes apart one at a time, within a bound of bytes.

Problems are gone through once and kept as compressed JSON. Where they outgrow the bound, a sample stays that depends on nothing
but the problems' ids: each step halves it, by one more bit of a hash of the id.

What is kept is a function of the problems in their order. A page is a cut of the problems of one level alone, and a level is
dropped where the pages of it and of those above are too large, which more problems never undo: so a step may be taken as soon as
it is known, and problems may come one by one or as several payloads in order.
"""

from __future__ import annotations

import base64
import json
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, islice
from typing import Any

from latent_tts.evaluation.problem_outcomes import FILTERS, ProblemOutcome
from latent_tts.evaluation.records import RolloutRecord

BYTE_LIMIT = 12_000_000
"""Compressed bytes of a report's problems; base64 makes a third more of them."""

PART_ROOM = 3
"""How many times the whole's bound a payload has that another one is to take in: enough to drop nothing that the whole keeps.

The whole cuts the same text into other pages. Two cuts are more than `_PAGE_CHARACTERS` apart, so at most one of the part's lies
within a page of the whole, and each of the two pieces takes no more than about the bytes of the whole page. So what has twice
the bytes in the part's pages, and here three times, is beyond the bound in the whole's.
"""

_PAGE_CHARACTERS = 100_000
_SCORE = "%.4g"
_HASH_BITS = 64


@dataclass
class _Level:
    """The problems that leave the sample at the same step."""

    pages: list[bytes] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)  # what the list of problems shows, and [page, place on it]
    lengths: array[int] = field(default_factory=lambda: array("I"))  # of the entries, in characters
    open_page: list[str] = field(default_factory=list)
    open_characters: int = 0

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.pages))

    def add(self, entry: str, row: list[Any]) -> bool:
        """Takes one problem in; whether that has closed a page."""
        self.rows.append([*row, len(self.pages), len(self.open_page)])
        self.lengths.append(len(entry))
        self.open_page.append(entry)
        self.open_characters += len(entry)
        if self.open_characters <= _PAGE_CHARACTERS:
            return False
        self.close_page()
        return True

    def close_page(self) -> None:
        if self.open_page:
            self.pages.append(compressed(f"[{','.join(self.open_page)}]"))
        self.open_page, self.open_characters = [], 0

    def entries(self) -> Iterator[tuple[str, list[Any]]]:
        """What was added, in order."""
        lengths, rows = iter(self.lengths), iter(self.rows)
        for page in self.pages:
            text, start = zlib.decompress(page, wbits=-zlib.MAX_WBITS).decode(), 1
            while start < len(text):
                length = next(lengths)
                yield text[start : start + length], next(rows)[:-2]
                start += length + 1  # the comma, or the bracket at the end
        yield from zip(self.open_page, (row[:-2] for row in rows), strict=True)


class Payload:
    """Takes problems one at a time; `pages` and `index` are what the page holds of them.

    Args:
        byte_limit: Of the compressed problems.

    Attributes:
        num_problems: All that were added.
        counts: Filter -> problems of all that were added.
    """

    def __init__(self, byte_limit: int = BYTE_LIMIT) -> None:
        self.byte_limit = byte_limit
        self.num_problems = 0
        self.counts: Counter[str] = Counter()
        self._levels: dict[int, _Level] = {}
        self._lowest = 0

    def add(self, outcome: ProblemOutcome) -> None:
        """Takes one problem in, and halves the sample while it is too large."""
        self.num_problems += 1
        filters = outcome.filters
        self.counts.update(filters)
        level = _level(outcome.record.problem_id)
        if level < self._lowest:
            return
        row = index_row(self.num_problems, outcome, filters)
        self._add(level, json.dumps(entry(outcome), separators=(",", ":")), row)

    def extend(self, later: Payload) -> None:
        """Takes in the problems that follow, which had `PART_ROOM`; pages are cut as if they came one by one.

        The levels that stay longest come first: what is dropped for them need not be cut at all.
        """
        before, self.num_problems = self.num_problems, self.num_problems + later.num_problems
        self.counts.update(later.counts)
        self._lowest = max(self._lowest, later._lowest)
        if not before:  # its pages are those of the whole
            self._levels = later._levels
            self._halve_while_too_large()
            return
        self._levels = {number: level for number, level in self._levels.items() if number >= self._lowest}
        for number, level in sorted(later._levels.items(), reverse=True):
            for text, row in level.entries():
                if number < self._lowest:
                    break
                self._add(number, text, [before + row[0], *row[1:]])

    def _add(self, level: int, entry: str, row: list[Any]) -> None:
        if self._levels.setdefault(level, _Level()).add(entry, row):  # the sum of bytes has changed
            self._halve_while_too_large()

    @property
    def num_shown(self) -> int:
        """Problems in the sample: all, where they fit."""
        return sum(len(level.rows) for level in self._levels.values())

    def close(self) -> None:
        """Compresses the last pages; to be called when every problem is in."""
        for level in self._levels.values():
            level.close_page()
        self._halve_while_too_large()

    def pages(self) -> Iterator[str]:
        """The pages of the sample in base64."""
        for _, level in sorted(self._levels.items()):
            yield from (base64.b64encode(page).decode() for page in level.pages)

    def index(self, described: dict[str, Any]) -> str:
        """The list of problems, and what is said of them as a whole, in base64."""
        rows, first = [], 0
        for _, level in sorted(self._levels.items()):
            rows += [[*row[:-2], first + row[-2], row[-1]] for row in level.rows]
            first += len(level.pages)
        content = described | {
            "num_problems": self.num_problems,
            "filters": [[name, one.label, self.counts[name]] for name, one in FILTERS.items()],
            "problems": sorted(rows),
        }
        return base64.b64encode(compressed(json.dumps(content, separators=(",", ":")))).decode()

    def _halve_while_too_large(self) -> None:
        while sum(level.num_bytes for level in self._levels.values()) > self.byte_limit and len(self._levels) > 1:
            self._lowest = min(self._levels) + 1
            del self._levels[self._lowest - 1]


def compressed(text: str) -> bytes:
    """Deflated, without a header: equal bytes for equal text."""
    packer = zlib.compressobj(level=6, wbits=-zlib.MAX_WBITS)
    return packer.compress(text.encode()) + packer.flush()


def _level(problem_id: str) -> int:
    """At which step a problem leaves the sample: level l has the share 2^-(l + 1) of all problems."""
    number = int.from_bytes(blake2b(problem_id.encode(), digest_size=_HASH_BITS // 8).digest(), "big")
    return _HASH_BITS - number.bit_length()


def index_row(number: int, outcome: ProblemOutcome, filters: Iterable[str]) -> list[Any]:
    """One line of the list: what is shown, searched and filtered without taking a page apart."""
    record, names = outcome.record, list(FILTERS)
    mask = sum(1 << names.index(name) for name in filters)
    right = [int(record.greedy.correct), int(outcome.voting.correct)]
    counts = [outcome.num_right, len(record.rollouts)]
    return [number, record.problem_id, record.question, _short(record.gold), mask, *counts, *right]


def entry(outcome: ProblemOutcome) -> dict[str, Any]:
    """All of one problem that its index row does not have; rollouts as columns, which compress better."""
    record, rollouts = outcome.record, outcome.record.rollouts
    return {
        "chosen": [[_short(choice.answer), int(choice.correct), choice.text] for choice in outcome.choices],
        "texts": [rollout.text for rollout in rollouts],
        "answers": [_short(rollout.answer) for rollout in rollouts],
        "right": "".join(str(int(rollout.correct)) for rollout in rollouts),
        "finite": "".join(str(int(rollout.finite)) for rollout in rollouts),
        "num_latents": [rollout.num_latents for rollout in rollouts],
        "step_scores": _scores(rollouts),
        "diversity": record.diversity,
        "token_steps": record.token_steps.to_json(),
    }


def _scores(rollouts: Sequence[RolloutRecord]) -> list[list[float] | None]:
    """The step scores of every rollout as they are shown; all numbers in one step, as most of a problem are its scores."""
    scores = list(chain.from_iterable(rollout.step_scores or () for rollout in rollouts))
    shown = iter(json.loads(f"[{','.join([_SCORE] * len(scores)) % tuple(scores)}]"))
    return [
        None if rollout.step_scores is None else list(islice(shown, len(rollout.step_scores))) for rollout in rollouts
    ]


def _short(value: float | None) -> Any:
    """An integer where the number is one: 72 for 72.0; floats beyond 2^53 keep their exponent."""
    return int(value) if value is not None and value.is_integer() and abs(value) < 2**53 else value

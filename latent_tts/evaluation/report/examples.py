"""A few problems as text: question, gold answer, what was chosen, and every rollout with its score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from latent_tts.evaluation.records import Record, RolloutRecord

KINDS = ("choices_differ", "all_choices_wrong", "no_rollout_right", "all_choices_right")
MOST_ROLLOUTS = 16


class Examples:
    """The first problems of each kind among those that were added: where choices differ, where all are wrong or right, where no
    rollout is right.

    Args:
        per_kind: Problems of a kind.
    """

    def __init__(self, per_kind: int = 2) -> None:
        self.per_kind = per_kind
        self._found: dict[str, list[str]] = {kind: [] for kind in KINDS}

    def add(self, record: Record) -> None:
        """Keeps a problem where fewer of its kind were seen."""
        texts = self._found[kind_of(record)]
        if len(texts) < self.per_kind:
            texts.append(problem_text(record))

    def extend(self, later: Examples) -> None:
        """Takes in what was found among the problems that follow."""
        for kind, texts in self._found.items():
            texts += later._found[kind][: self.per_kind - len(texts)]

    def texts(self) -> list[tuple[str, str]]:
        """(kind, Markdown) of each, one kind after the other."""
        return [(kind, text) for kind, texts in self._found.items() for text in texts]


def kind_of(record: Record) -> str:
    """One of KINDS."""
    right = [right for _, _, right in chosen(record)]
    if not any(one.correct for one in record.rollouts):
        return "no_rollout_right"
    return "all_choices_right" if all(right) else "choices_differ" if any(right) else "all_choices_wrong"


def problem_text(record: Record) -> str:
    """A problem in Markdown."""
    scored = any(rollout.step_scores is not None for rollout in record.rollouts)
    head = ["rollout", "answer", "right", *(["score", "step scores"] if scored else []), "text"]
    rows = [_row(number, one, scored) for number, one in enumerate(record.rollouts[:MOST_ROLLOUTS], start=1)]
    left = len(record.rollouts) - len(rows)
    more = [f"{left} more rollouts are in `predictions/`."] if left else []
    parts = [
        f"**{record.problem_id}** {_plain(record.question)}",
        f"Gold answer **{_number(record.gold)}**; greedy {_number(record.greedy.answer)}.",
        table(
            ["strategy", "answer", "right"],
            [[name, _number(answer), _mark(right)] for name, answer, right in chosen(record)],
        ),
        table(head, rows),
        *more,
    ]
    return "\n\n".join(parts)


def chosen(record: Record) -> list[tuple[str, float | None, bool]]:
    """(strategy, answer, whether it is right) of every way from the rollouts to an answer."""
    right = {one.answer for one in record.rollouts if one.correct}
    aggregated = [(key, answer, answer is not None and answer in right) for key, answer in record.chosen.items()]
    return [*aggregated, *((key, one.answer, one.correct) for key, one in record.search.items())]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _row(number: int, one: RolloutRecord, scored: bool) -> list[str]:
    steps = one.step_scores or ()
    scores = [f"{sum(steps):.2f}" if steps else "", " ".join(f"{step:.2f}" for step in steps)] if scored else []
    return [str(number), _number(one.answer), _mark(one.correct), *scores, _plain(one.text)]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.10g}"


def _mark(right: bool) -> str:
    return "yes" if right else "no"


def _plain(text: str) -> str:
    """A text in one line, in which nothing is Markdown."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>|#" else letter for letter in " ".join(text.split()))

"""One problem in a terminal: what report.html shows of it, in the width there is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from latent_tts.evaluation.problem_outcomes import FILTERS, Choice, ProblemOutcome
from latent_tts.evaluation.records import RolloutRecord

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_SIGNS = "▁▂▃▄▅▆▇█"
_RIGHT, _WRONG = ("✓", "green"), ("✗", "red")
_BAR = 10


def print_problem(number: int, outcome: ProblemOutcome, console: Console) -> None:
    """Question and gold answer, the choice of every strategy, the votes, and every rollout."""
    from rich.text import Text

    record = outcome.record
    console.print(Text.assemble((f"Problem {number}", "bold"), f"  {printable(record.problem_id)}"), soft_wrap=True)
    console.print()
    console.print(Text(printable(record.question)))
    console.print()
    facts = [
        f"{outcome.num_right} of {len(record.rollouts)} rollouts right",
        f"{outcome.num_invalid} without an answer",
    ]
    console.print(Text.assemble("gold answer ", (shown(record.gold), "bold"), f"; {'; '.join(facts)}"))
    for table in (_choices(outcome), _votes(outcome), _rollouts(outcome, console.width)):
        console.print()
        console.print(table)


def print_list(outcomes: Iterable[ProblemOutcome], name: str, console: Console) -> None:
    """A line for each problem that a filter lets through, as they are read, and how many there are."""
    from rich.text import Text

    count = passed = 0
    for count, outcome in enumerate(outcomes, start=1):
        if not FILTERS[name].lets_through(outcome):
            continue
        passed += 1
        record = outcome.record
        right = f"{outcome.num_right}/{len(record.rollouts)}"
        greedy, voting = _mark(record.greedy.correct), _mark(outcome.voting.correct)
        question = printable(" ".join(record.question.split()))
        line = Text.assemble(f"{count:>5} greedy ", greedy, " voting ", voting, f" {right:>7}  ", question)
        console.print(line, no_wrap=True, overflow="ellipsis")
    console.print(f"{passed:,} of {count:,} problems ({FILTERS[name].label})", highlight=False)


def _choices(outcome: ProblemOutcome) -> Table:
    table = _table("strategy", "chose", "", "rollouts with it", "text")
    for choice in outcome.choices:
        table.add_row(choice.strategy.label(), shown(choice.answer), _mark(choice.correct), *_behind(choice, outcome))
    return table


def _behind(choice: Choice, outcome: ProblemOutcome) -> tuple[str, Text]:
    from rich.text import Text

    rollouts = outcome.record.rollouts
    count = sum(rollout.answer is not None and rollout.answer == choice.answer for rollout in rollouts)
    return str(count), Text(printable(choice.text or ""), style="dim", overflow="fold")


def _votes(outcome: ProblemOutcome) -> Table:
    groups: defaultdict[float | None, list[RolloutRecord]] = defaultdict(list)
    for rollout in outcome.record.rollouts:
        groups[rollout.answer].append(rollout)
    table = _table("answer", "", "votes", "", "mean score")
    for answer, group in sorted(groups.items(), key=lambda pair: -len(pair[1])):
        scores = [sum(one.step_scores) for one in group if one.step_scores is not None]
        mean = f"{sum(scores) / len(scores):.2f}" if scores else ""
        bar = "█" * math.ceil(_BAR * len(group) / len(outcome.record.rollouts))
        table.add_row(shown(answer), _mark(group[0].correct), str(len(group)), bar, mean)
    return table


def _rollouts(outcome: ProblemOutcome, width: int) -> Table:
    from rich.text import Text

    rollouts = outcome.record.rollouts
    longest = max((len(rollout.step_scores or ()) for rollout in rollouts), default=0)
    per_sign = max(1, math.ceil(longest / max(8, width // 4)))
    signs = "step scores" if per_sign == 1 else f"means of {per_sign} scores"
    table = _table("rollout", "answer", "", *(("score", signs) if longest else ()), "text")
    extent = max((abs(score) for rollout in rollouts for score in rollout.step_scores or ()), default=0.0)
    for number, rollout in enumerate(rollouts, start=1):
        scores = rollout.step_scores or ()
        scored = (f"{sum(scores):.2f}" if scores else "", spark(scores, extent, per_sign)) if longest else ()
        said = printable(rollout.text) + ("" if rollout.finite else " (not finite)")
        text = Text(said, style="dim", overflow="fold")
        table.add_row(str(number), shown(rollout.answer), _mark(rollout.correct), *scored, text)
    return table


def spark(scores: Sequence[float], extent: float, per_sign: int = 1) -> str:
    """Scores from -extent to extent as signs of eight heights, each the mean of `per_sign` of them.

    >>> spark([-2.0, -0.1, 0.1, 2.0], extent=2.0)
    '▁▄▅█'
    """
    return "".join(_SIGNS[min(7, int(4 * (mean / (extent or 1.0) + 1)))] for mean in _means(scores, per_sign))


def _means(scores: Sequence[float], size: int) -> Iterator[float]:
    for start in range(0, len(scores), size):
        part = scores[start : start + size]
        yield sum(part) / len(part)


def shown(answer: float | None) -> str:
    """`72` for 72.0; a dash where there is none."""
    if answer is None:
        return "-"
    return f"{answer:.0f}" if answer.is_integer() and abs(answer) < 2**53 else repr(answer)


def printable(text: str) -> str:
    """Text without what a terminal would obey: control characters are written out."""
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in text
    )


def _mark(right: bool) -> Text:
    from rich.text import Text

    return Text(*(_RIGHT if right else _WRONG))


def _table(*header: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="dim")
    numbers = ("chose", "answer", "votes", "score", "mean score", "rollout", "rollouts with it")
    for name in header:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return table

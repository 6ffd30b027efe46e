"""Diagnoses of a run: the method's known signs of failure, where the data show them, with the number and what to try.

Each rule is a function of the metrics and of the table of records that finds its sign or None; to add one, name it in `RULES`.
Where a sign has an interval, that decides: what few problems cannot show is not told, or told to be that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latent_tts.evaluation.record_table import RecordTable, last_ranking, table_of
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.results import Cell, Metrics, StrategyResult, results
from latent_tts.metrics.coverage import coverage_at
from latent_tts.metrics.intervals import Interval, difference_bounds

FLAT_GAIN = 0.02
"""Coverage that surely rises by less than this over the last two doublings of N is flat. A third-party run of the released
COCONUT gains from 16 to 64 rollouts 6.9 points on GSM8K, 2.3 on GSM-Hard, and 1.7 on MultiArith at 92 %."""
NO_DIVERSITY = 1e-6
"""Mean cosine distance of equal latents: what rounding leaves in float32."""
INVALID_RATE = 0.05
"""Share of answers that don't parse beyond which they, not the method, decide what is measured."""
SATURATED = math.log(0.99 / 0.01)
"""A score beyond which sigmoid(score) is above 0.99, or below 0.01,"""
SATURATED_SHARE = 0.9
"""and the share of scores that are, from which on all of them say the same."""
FEW_FACTOR = 100
"""A difference that would take more than so many times the problems is not worth looking for."""


@dataclass(frozen=True)
class Diagnosis:
    """One sign of failure that a run shows."""

    name: str
    """Of the rule, a few words."""
    sentence: str
    """What the data show, with the number and its interval."""
    figure: str | None
    """The figure that shows it, a key of `report.figures.FIGURES`."""
    advice: str
    """What to try."""


Rule = Callable[[Metrics, RecordTable | None], Diagnosis | None]


def diagnose(metrics: Metrics, records: Iterable[Record] | RecordTable | None = None) -> list[Diagnosis]:
    """All signs that a run shows, in the order of `RULES`.

    Args:
        metrics: The content of metrics.json.
        records: What it was made from, gone through once, or their table; None leaves out what only records show.
    """
    table = None if records is None else table_of(records)
    found = [rule(metrics, table) for rule in RULES]
    return [one for one in found if one is not None]


# What came out of the model -----------------------------------------------------------------------------------------


def not_finite(metrics: Metrics, table: RecordTable | None) -> Diagnosis | None:
    """Rollouts with NaN or infinity."""
    count, total = metrics["nonfinite_rollouts"], metrics["num_problems"] * metrics["num_rollouts"]
    if not count:
        return None
    return Diagnosis(
        "rollouts are not finite",
        f"{count:,} of {total:,} rollouts met NaN or infinity, and count as invalid and wrong.",
        "invalid",
        "Take a wider --model.dtype (bfloat16 or float32 in place of float16), or less noise.",
    )


def invalid_answers(metrics: Metrics, table: RecordTable | None) -> Diagnosis | None:
    """Answers that don't parse."""
    rate = metrics["invalid_answer_rate"]
    if rate is None or rate <= INVALID_RATE:
        return None
    return Diagnosis(
        "many answers do not parse",
        f"{100 * rate:.1f} % of the rollouts have no number as their answer (more than {100 * INVALID_RATE:.0f} %).",
        "invalid",
        "Read some texts (`evaluate.py inspect RUN PROBLEM`): where answers are cut off, raise --model.max_answer_tokens; where "
        "they are garbled, take less noise, or check that the prompt form is the model's.",
    )


# Sampling -----------------------------------------------------------------------------------------------------------


def no_diversity(metrics: Metrics, table: RecordTable | None) -> Diagnosis | None:
    """Rollouts that are all one; where answers are drawn, equal thoughts may be meant."""
    drawn = metrics.get("evaluated", {}).get("answer_sampler")
    if metrics["num_rollouts"] < 2 or drawn or _differ(metrics):
        return None
    mean = metrics["diversity"]["mean"]
    alike = (
        ""
        if table is None
        else f"; in {_share(table.num_alike == table.num_rollouts)} of the problems all texts are one"
    )
    return Diagnosis(
        "rollouts do not differ",
        f"The latents of a problem's rollouts lie {mean:.1g} apart (mean cosine distance), as without noise{alike}.",
        "diversity",
        "Sample: --model.sampler AdditiveGaussianNoise or MonteCarloDropout, and raise its sigma or p until diversity shows.",
    )


def flat_coverage(metrics: Metrics, table: RecordTable | None) -> Diagnosis | None:
    """Coverage that further rollouts no longer raise; its gain over the last two doublings, paired by problem."""
    top = metrics["num_rollouts"]
    if table is None or top < 8 or not _differ(metrics):
        return None
    correct = torch.arange(top) < torch.as_tensor(table.num_right)[:, None]
    at_quarter, at_top = coverage_at(correct, [top // 4, top]).T.numpy()
    gain = _mean_difference(at_top - at_quarter)
    if gain.high >= FLAT_GAIN:
        return None
    return Diagnosis(
        "coverage is flat early",
        f"From {top // 4} to {top} rollouts coverage rises by {points(gain)} points: less than {100 * FLAT_GAIN:.0f}.",
        "accuracy",
        "Raise the noise (coverage peaks at moderate diversity), try another sampler, or draw fewer rollouts.",
    )


def greedy_above_voting(metrics: Metrics, table: RecordTable | None) -> Diagnosis | None:
    """Voting that doesn't make up for what noise costs."""
    paired = metrics["difference_to_majority_voting"].get("greedy")
    if paired is None or paired["interval"][0] is None or paired["interval"][0] <= 0:
        return None
    gap = Cell(paired["mean"], *paired["interval"])
    return Diagnosis(
        "the greedy answer beats voting",
        f"The answer without noise is right for {gap.signed(' (')}) points more problems than majority voting over N.",
        "accuracy",
        "Take less noise: it costs each rollout more than voting gives back; or let a reward model choose.",
    )


# Aggregation --------------------------------------------------------------------------------------------------------


def nothing_above_voting(metrics: Metrics, table: RecordTable | None) -> Diagnosis | None:
    """Aggregations and searches by scores of which none is above majority voting."""
    compared = _by_scores(metrics)
    if not compared or any(_gain(row).bounds[0] > 0 for row in compared):
        return None
    best = max(compared, key=lambda row: _gain(row).value)
    return Diagnosis(
        "no aggregation is above voting",
        f"The best, {best.strategy.label()}, differs from majority voting by {_gain(best).signed(' (')}) points.",
        "reliability" if table is not None and table.scored else "accuracy",
        "Train the reward model on rollouts of this sampler and these problems; try other reductions of its scores "
        "(`evaluate.py report RUN --aggregations`), or weighted voting in place of best-of-N.",
    )


def too_few_problems(metrics: Metrics, table: RecordTable | None) -> Diagnosis | None:
    """A difference to voting that more problems may show: the interval of n problems shrinks with the root of n."""
    compared = _by_scores(metrics)
    if not compared:
        return None
    best = max(compared, key=lambda row: _gain(row).value)
    gain, count = _gain(best), metrics["num_problems"]
    low, high = gain.bounds
    if low > 0 or gain.value <= 0:
        return None
    needed = math.ceil(count * ((high - low) / 2 / gain.value) ** 2)
    if not count < needed <= FEW_FACTOR * count:
        return None
    return Diagnosis(
        "too few problems to see the difference",
        f"{best.strategy.label()} gains {gain.signed(' (')}) points over voting on {count:,} problems: if that is the true gain, "
        f"about {_round_up(needed):,} problems would show it.",
        "accuracy",
        "Evaluate more problems (a larger --data.limit or --data.size goes on in the same folder).",
    )


# Scores -------------------------------------------------------------------------------------------------------------


def constant_scores(metrics: Metrics, table: RecordTable | None) -> Diagnosis | None:
    """Scores that are one number."""
    if (
        table is None
        or len(table.score) < 2
        or float(np.ptp(table.score)) > 1e-6 * max(1.0, float(np.abs(table.score).max()))
    ):
        return None
    return Diagnosis(
        "scores are constant",
        f"All {len(table.score):,} rollouts have the score {float(table.score[0]):.4g}.",
        "reliability",
        "Check that the reward model was trained (its loss fell), and that it is the one for this backbone.",
    )


def saturated_scores(metrics: Metrics, table: RecordTable | None) -> Diagnosis | None:
    """Scores whose sigmoid is 0 or 1 for nearly all rollouts."""
    if (
        table is None
        or not table.scored
        or (share := float((np.abs(table.score) > SATURATED).mean())) < SATURATED_SHARE
    ):
        return None
    return Diagnosis(
        "scores are saturated",
        f"{100 * share:.1f} % of the rollouts score above 99 % or below 1 % by sigmoid(score).",
        "reliability",
        "Weigh votes with a higher temperature, and avoid the reductions `product` and `sum`; train for fewer epochs, or with "
        "more weight decay.",
    )


def unrelated_scores(metrics: Metrics, table: RecordTable | None) -> Diagnosis | None:
    """Scores that rank right rollouts of a problem no higher than wrong ones."""
    if table is None or not table.scored or constant_scores(metrics, table) is not None:
        return None
    ranked = last_ranking(table)
    if math.isnan(ranked.mean) or ranked.low > 0.5:
        return None
    return Diagnosis(
        "scores do not tell right from wrong",
        f"A right rollout scores above a wrong one of its problem in {_percent(ranked)} % of the pairs; chance is 50.",
        "reliability",
        "Train the reward model on rollouts of this sampler, with more problems that are neither all right nor all wrong.",
    )


RULES: tuple[Rule, ...] = (
    not_finite,
    invalid_answers,
    no_diversity,
    flat_coverage,
    greedy_above_voting,
    nothing_above_voting,
    too_few_problems,
    constant_scores,
    saturated_scores,
    unrelated_scores,
)


# Numbers ------------------------------------------------------------------------------------------------------------


def _by_scores(metrics: Metrics) -> list[StrategyResult]:
    """Aggregations but voting itself, and searches, with their paired differences to it."""
    if metrics["num_rollouts"] < 2:
        return []
    rows = [row for row in results(metrics) if row.strategy.kind in ("aggregation", "search")]
    return [row for row in rows if row.difference is not None]


def _gain(row: StrategyResult) -> Cell:
    assert row.difference is not None
    return row.difference


def _differ(metrics: Metrics) -> bool:
    mean = metrics["diversity"]["mean"]
    return mean is None or mean > NO_DIVERSITY


def _mean_difference(values: np.ndarray) -> Interval:
    low, high = difference_bounds([values.mean()], [np.square(values).mean()], len(values))
    return Interval(float(values.mean()), float(low[0]), float(high[0]))


def points(interval: Interval) -> str:
    """A difference in points with its interval: `+1.2 (-0.3 to +2.7)`."""
    return f"{Cell(*interval).signed(' (')})"


def _percent(interval: Interval) -> str:
    return f"{Cell(*interval).text(' (')})"


def _share(marks: Sequence[bool] | np.ndarray) -> str:
    return f"{100 * float(np.mean(marks)):.0f} %"


def _round_up(number: int) -> int:
    """To two digits."""
    unit: int = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit

"""Risk against coverage: how often answers are wrong when those with little agreement, or with low scores, are withheld.

Coverage here is the share of problems that are answered, as in the literature of selective prediction, not coverage@k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from latent_tts.evaluation.record_table import Floats, RecordTable
from latent_tts.evaluation.report.figures.style import legend_beside, look, new_axes, title_of, wrapped
from latent_tts.evaluation.results import Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def risk_curve(confidence: ArrayLike, right: ArrayLike) -> Floats:
    """The share of wrong answers among the i problems of the highest confidence, for i = 1..P.

    Of problems of equal confidence any may come first: each counts with the mean of them, the expectation over their orders.
    (Geifman & El-Yaniv 2017, arXiv 1705.08500.)

    Args:
        confidence: (P,) any numbers.
        right: (P,) 0..1, how right the answers are.

    Returns:
        (P,) float64.
    """
    confidence, wrong = np.asarray(confidence, dtype=np.float64), 1.0 - np.asarray(right, dtype=np.float64)
    _, group = np.unique(-confidence, return_inverse=True)
    mean = np.bincount(group, weights=wrong) / np.bincount(group)
    risks: Floats = np.cumsum(mean[np.sort(group)]) / np.arange(1, len(wrong) + 1)
    return risks


def area(risks: Floats) -> float:
    """The area under the risk-coverage curve, its mean over the numbers of answered problems (arXiv 1805.08206)."""
    return float(risks.mean())


def agreement_figure(metrics: Metrics, table: RecordTable | None = None) -> Figure | None:
    """Risk against the share of problems that are answered, for each measure of agreement; None without records or at N = 1."""
    if table is None or table.num_problems < 2 or table.num_rollouts.max() < 2:
        return None
    rules = {"majority voting, by vote share": (table.vote_share, table.vote_right)}
    if table.scored and not np.isnan(table.best_score).any():
        rules["weighted voting, by share of weight"] = (table.weighted_share, table.weighted_right)
        rules["best-of-N, by its score"] = (table.best_score, table.best_right)
    title = title_of(metrics, "Risk when answers with little agreement are withheld")
    figure, axes = new_axes(title, "problems answered in %", "wrong among the answered in %", len(rules) + 1)
    answered = 100 * np.arange(1, table.num_problems + 1) / table.num_problems
    for i, (name, (confidence, right)) in enumerate(rules.items()):
        risks = risk_curve(confidence, right)
        label = wrapped(f"{name}: area {area(risks):.3f}")
        axes.plot(answered, 100 * risks, label=label, markevery=0.1, **look(i).options())
    perfect = risk_curve(table.vote_right, table.vote_right)
    label = wrapped(f"majority voting, if it knew when it is right: area {area(perfect):.3f}")
    axes.plot(answered, 100 * perfect, color="#555555", linestyle=":", label=label)
    axes.set(xlim=(-2, 102), ylim=(-3, 103))
    legend_beside(axes)
    return figure

"""Risk against coverage: how often answers are wrong when those with little agreement, or with low scores, are withheld.

Coverage here is the share of problems that are answered, as in the literature of selective prediction, not coverage@k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latent_tts.evaluation.problem_statistics import withholding_rules
from latent_tts.evaluation.record_table import RecordTable
from latent_tts.evaluation.report.figures.style import legend_beside, look, new_axes, title_of, wrapped
from latent_tts.evaluation.results import Metrics
from latent_tts.metrics.selective_risk import area, risk_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def agreement_figure(metrics: Metrics, table: RecordTable | None = None) -> Figure | None:
    """Risk against the share of problems that are answered, for each measure of agreement; None without records or at N = 1."""
    rules = {} if table is None else withholding_rules(table)
    if table is None or not rules:
        return None
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

"""Diversity of the latents, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latent_tts.evaluation.record_table import RecordTable
from latent_tts.evaluation.report.figures.style import look, new_axes, title_of
from latent_tts.evaluation.results import Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def diversity_figure(metrics: Metrics, table: RecordTable | None = None) -> Figure | None:
    """Diversity at each latent step; None where there is a single rollout."""
    from matplotlib.ticker import MaxNLocator

    per_step = metrics["diversity"]["per_step"]
    steps = [step for step, value in enumerate(per_step, start=1) if value is not None]
    if not steps:
        return None
    title = title_of(metrics, "Diversity of the latent thoughts")
    figure, axes = new_axes(title, "latent step", "mean pairwise cosine distance")
    axes.plot(steps, [per_step[step - 1] for step in steps], **look(0).options())
    top = max(per_step[step - 1] for step in steps)
    axes.set_ylim(-0.03 * top - 1e-6, 1.06 * top + 1e-6)
    axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    axes.set_xlim(steps[0] - 0.4, steps[-1] + 0.4)
    return figure

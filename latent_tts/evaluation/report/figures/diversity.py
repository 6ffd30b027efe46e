"""Diversity of the latents, step by step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.figures.style import COLOURS, new_axes
from latent_tts.evaluation.results import Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def diversity_figure(metrics: Metrics, records: Iterable[Record] | None = None) -> Figure | None:
    """Diversity at each latent step; None where there is a single rollout."""
    per_step = metrics["diversity"]["per_step"]
    steps = [step for step, value in enumerate(per_step, start=1) if value is not None]
    if not steps:
        return None
    figure, axes = new_axes("latent step", "mean pairwise cosine distance")
    axes.plot(steps, [per_step[step - 1] for step in steps], marker="o", color=COLOURS[0])
    axes.set_ylim(bottom=0)
    if len(steps) <= 16:
        axes.set_xticks(steps)
    return figure

"""Success against diversity, problem by problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from latent_tts.evaluation.record_table import Floats, RecordTable
from latent_tts.evaluation.report.figures.style import draw_bar, legend_beside, look, new_axes, title_of
from latent_tts.evaluation.results import Cell, Metrics
from latent_tts.metrics.intervals import share_bounds
from latent_tts.metrics.rank_correlation import rank_correlation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PER_BIN, _MOST_BINS = 20, 8
_MANY = 2000  # points beyond which a drawing holds them as pixels


@dataclass(frozen=True)
class Bin:
    """Problems of like diversity."""

    x: float
    """Their mean diversity."""
    count: int
    success: Cell


def success_bins(diversity: ArrayLike, success: ArrayLike, num_bins: int) -> list[Bin]:
    """Problems in order of diversity, cut in bins of equal numbers (to one): mean diversity, and mean success with its interval.

    Args:
        diversity: (P,).
        success: (P,) in 0..1.
        num_bins: At most P.
    """
    diversity, success = np.asarray(diversity, dtype=np.float64), np.asarray(success, dtype=np.float64)
    order = np.argsort(diversity, kind="stable")
    return [_bin(diversity[part], success[part]) for part in np.array_split(order, num_bins)]


def _bin(diversity: Floats, success: Floats) -> Bin:
    mean = success.mean()
    low, high = share_bounds([mean], [np.square(success).mean()], len(success))
    return Bin(float(diversity.mean()), len(success), Cell(float(mean), float(low[0]), float(high[0])))


def success_figure(metrics: Metrics, table: RecordTable | None = None) -> Figure | None:
    """Single rollout, voting and coverage against the diversity of a problem; None where it is unknown or does not vary."""
    if table is None or not (known := ~np.isnan(table.diversity)).any() or np.ptp(table.diversity[known]) < 1e-6:
        return None
    diversity, share = table.diversity[known], (table.num_right / table.num_rollouts)[known]
    shown = {
        "coverage": (table.num_right > 0)[known].astype(float),
        "majority voting": table.vote_right[known],
        "single rollout": share,
    }
    what = f"Success against diversity, problem by problem (rank correlation {rank_correlation(diversity, share):+.2f})"
    figure, axes = new_axes(title_of(metrics, what), "mean pairwise cosine distance", "right in %", len(shown) + 2)
    dots: dict[str, Any] = {"markersize": 3, "color": "#999999", "alpha": 0.4, "markeredgewidth": 0, "zorder": 1}
    many = len(share) > _MANY
    axes.plot(diversity, 100 * share, "o", label="a problem's rollouts", rasterized=many, **dots)
    for i, (name, success) in enumerate(shown.items()):
        bins = success_bins(diversity, success, int(np.clip(len(share) // _PER_BIN, 1, _MOST_BINS)))
        axes.plot([one.x for one in bins], [100 * one.success.value for one in bins], label=name, **look(i).options())
        for one in bins:
            draw_bar(axes, one.x, one.success, look(i))
    axes.set_ylim(-3, 103)
    legend_beside(axes, "bars: 95 % intervals, of bins of equal numbers of problems")
    return figure

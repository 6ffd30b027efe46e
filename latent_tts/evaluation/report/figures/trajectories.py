"""Latent trajectories of the rollouts of one problem in two dimensions, several runs side by side, right and wrong told apart."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_tts.errors import UserError
from latent_tts.evaluation.report.figures.style import RIGHT, SMALL, WRONG, new_figure, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Method = Literal["pca", "tsne"]
Points = NDArray[np.float64]

_COLUMNS = 3
_MANY = 128  # rollouts beyond which a drawing holds their lines as pixels
_PERPLEXITY = 30.0  # scikit-learn's default


@dataclass(frozen=True)
class Trajectories:
    """The rollouts of one problem in one run."""

    label: str
    latents: Tensor  # (N, T, D)
    num_latents: Tensor  # (N,)
    correct: Sequence[bool]

    @property
    def mask(self) -> Tensor:
        """(N, T), true where a rollout has the step."""
        return torch.arange(self.latents.shape[1]) < self.num_latents.cpu()[:, None]


@dataclass(frozen=True)
class Projection:
    """Trajectories in a plane that all runs share."""

    points: list[Points]
    """One of (N, T, 2) a run, NaN where a rollout has no such step."""
    axes: tuple[str, str]
    """What the two axes are called."""


def project(runs: Sequence[Trajectories], method: Method = "pca") -> Projection:
    """All latents of all runs in one plane, so that panels can be compared.

    pca keeps the two directions of the largest variance (each with its sign such that its largest entry is positive), tsne
    neighbourhoods, by scikit-learn.

    Raises:
        UserError: Runs whose latents have different widths, latents that are not finite, fewer than three of them, or tsne
            without scikit-learn.
    """
    if len({run.latents.shape[2] for run in runs}) > 1:
        raise UserError("The runs have latents of different widths: draw runs of one backbone together.")
    rows = torch.cat([run.latents.cpu().double()[run.mask] for run in runs])  # (M, D)
    if not torch.isfinite(rows).all():
        raise UserError("A latent is not finite: choose a problem whose rollouts all are.")
    if len(rows) < 3:
        raise UserError("There are fewer than three latents to draw: choose a run of more rollouts.")
    flat, names = _pca(rows) if method == "pca" else _tsne(rows)
    parts = np.split(flat, np.cumsum([int(run.mask.sum()) for run in runs])[:-1])
    points = []
    for run, part in zip(runs, parts, strict=True):
        placed = np.full((*run.mask.shape, 2), np.nan)
        placed[run.mask.numpy()] = part
        points.append(placed)
    return Projection(points, names)


def _pca(rows: Tensor) -> tuple[Points, tuple[str, str]]:
    centred = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    top = vectors[:, [-1, -2]]  # (D, 2)
    top = top * top.gather(0, top.abs().argmax(0, keepdim=True)).sign()
    shares = values[[-1, -2]] / values.sum().clamp_min(1e-300)
    first, second = (
        f"component {i} ({100 * share:.0f} % of the variance)" for i, share in enumerate(shares.tolist(), 1)
    )
    return (centred @ top).numpy(), (first, second)


def _tsne(rows: Tensor) -> tuple[Points, tuple[str, str]]:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise UserError("t-SNE needs scikit-learn: `pip install scikit-learn`, or leave --method at pca.") from error
    perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
    placed = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(rows.numpy())
    return placed.astype(np.float64), ("t-SNE 1", "t-SNE 2")


def trajectories_figure(runs: Sequence[Trajectories], problem: str, method: Method = "pca") -> Figure:
    """A panel a run on the same axes: each rollout a line through its thoughts, a mark at the last one that says right or wrong.

    Args:
        runs: The same problem in each.
        problem: What is asked, for the title.
        method: See `project`.

    Raises:
        UserError: See `project`.
    """
    plane = project(runs, method)
    columns = min(_COLUMNS, len(runs))
    rows = -(-len(runs) // columns)
    title = f"Latent trajectories of one problem\n{textwrap.shorten(problem, 55 + 55 * columns, placeholder=' …')}"
    figure = new_figure(title, 1.3 + 3.2 * rows, 2.2 + 3.3 * columns)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes in panels[len(runs) :]:
        axes.remove()
    for axes, run, points in zip(panels, runs, plane.points, strict=False):
        _draw(axes, run, points)
    figure.supxlabel(plane.axes[0], fontsize=SMALL + 1)
    figure.supylabel(plane.axes[1], fontsize=SMALL + 1)
    _legend(figure)
    return figure


def _draw(axes: Axes, run: Trajectories, points: Points) -> None:
    many = len(points) > _MANY
    axes.set_title(f"{wrapped(run.label, 30)}\n{sum(run.correct)} of {len(run.correct)} right", fontsize=SMALL + 1)
    marks, thought = np.array(run.correct, dtype=bool), run.num_latents.numpy() > 0
    last = points[np.arange(len(points)), np.maximum(run.num_latents.numpy(), 1) - 1]  # (N, 2)
    # a step that is nowhere ends each rollout's line
    ended = np.concatenate([points, np.full_like(points[:, :1], np.nan)], axis=1)
    for right in (False, True):
        chosen = thought & (marks == right)
        axes.plot(*ended[chosen].reshape(-1, 2).T, rasterized=many, **_STYLES[right])
        axes.plot(*last[chosen].T, rasterized=many, **_MARKS[right])
    axes.plot(*points[thought, 0].T, ".", color="#777777", markersize=3, rasterized=many)
    axes.grid(alpha=0.25)
    axes.margins(0.06)


# solid and round for right, dashed and crossed for wrong: told apart in grey too
_STYLES: dict[bool, dict[str, Any]] = {
    True: {"color": RIGHT, "linestyle": "-", "linewidth": 0.8, "alpha": 0.6, "zorder": 2},
    False: {"color": WRONG, "linestyle": (0, (4, 2)), "linewidth": 0.8, "alpha": 0.6, "zorder": 1},
}
_MARKS: dict[bool, dict[str, Any]] = {
    True: {"color": RIGHT, "marker": "o", "linestyle": "", "markersize": 5, "zorder": 4},
    False: {"color": WRONG, "marker": "X", "linestyle": "", "markersize": 5.5, "zorder": 3},
}


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    marks = {right: {"marker": mark["marker"], "markersize": mark["markersize"]} for right, mark in _MARKS.items()}
    handles = [
        Line2D([], [], label=wrapped(f"{name}, marked at its last thought", 20), **_STYLES[right], **marks[right])
        for name, right in (("right", True), ("wrong", False))
    ]
    handles.append(Line2D([], [], color="#777777", marker=".", linestyle="", label="first thought"))
    figure.legend(handles=handles, loc="outside right lower", fontsize=SMALL, frameon=False, handlelength=3.2)

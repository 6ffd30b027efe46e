"""Published figures as acceptance bands: whether a run of a released checkpoint comes out where others found it.

A band is the 95 % score interval of the published share at its number of problems. The problems are the same and only the draws
differ, so a faithful run lies well inside; one outside is a difference in the method, in the data or in the judging.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from latent_tts.errors import UserError
from latent_tts.evaluation.chapter.kept import KeptRun
from latent_tts.metrics.intervals import share_bounds

_PROBLEMS = "problems"
_ALIKE = 0.01
"""Share of the problems by which a set may differ from the published one."""


@dataclass(frozen=True)
class Band:
    """One published figure."""

    key: str
    """Of the strategy, such as `coverage@16`."""
    published: tuple[float, float]
    """The ends of what was reported, in 0..1; one figure twice where it is one."""
    low: float
    high: float


@dataclass(frozen=True)
class Checked:
    """A band beside what a run of ours has."""

    band: Band
    value: float | None
    """None where the run has no such strategy."""

    @property
    def inside(self) -> bool | None:
        """Whether it lies in the band; None where there is nothing to compare."""
        return None if self.value is None else self.band.low <= self.value <= self.band.high


def read_bands(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Study -> run -> published figures, as the file has them.

    Raises:
        UserError: It cannot be read.
    """
    try:
        found: Mapping[str, Mapping[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} holds no bands that can be read ({type(error).__name__}).") from error
    return found


def bands_of(published: Mapping[str, Any]) -> list[Band]:
    """The bands of one run."""
    return [_band(key, figure, published[_PROBLEMS]) for key, figure in _figures(published)]


def _figures(published: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, figure in published.items():
        if isinstance(figure, Mapping):
            yield from ((f"{name}@{k}", one) for k, one in figure.items())
        elif name != _PROBLEMS:
            yield name, figure


def _band(key: str, figure: Any, num_problems: int) -> Band:
    ends = [one / 100 for one in (figure if isinstance(figure, list) else [figure])]
    low, high = share_bounds(ends, ends, num_problems)
    return Band(key, (ends[0], ends[-1]), float(low.min()), float(high.max()))


def check_bands(run: KeptRun, published: Mapping[str, Any]) -> list[Checked]:
    """Every band beside the run's figure.

    Raises:
        UserError: The run is of other problems.
    """
    count, theirs = run.metrics["num_problems"], published[_PROBLEMS]
    if abs(count - theirs) > _ALIKE * theirs:
        raise UserError(
            f"{run.name} is of {count:,} problems, and the published figures are of {theirs:,}: run the whole set."
        )
    found = [(band, run.at(band.key)) for band in bands_of(published)]
    return [Checked(band, None if one is None else one.value) for band, one in found]

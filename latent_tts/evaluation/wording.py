"""What reports say in words, whether they are read in a terminal, in report.md or in report.html."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Protocol

from latent_tts.evaluation.results import Metrics

OVER_K = """In percent, with 95 % intervals over problems. Coverage is the chance that at least one of k rollouts is right; an \
aggregation's accuracy at k is its expectation over the k-subsets of the rollouts."""

FULL_BUDGET = """In percent, with 95 % intervals over problems. `minus voting` is the paired difference to majority voting in \
points; `head-room` is the recovered share of the way from a single rollout to coverage; `token steps` are positions that went \
through the backbone and the reward model per problem."""

HOW_TO_READ = {
    "coverage": "at least one of the rollouts is right: the ceiling of whatever chooses among them.",
    "single rollout": "the chance that one rollout, drawn with noise, is right; `greedy` is the one without noise.",
    "intervals": "they say how far a figure may lie from that of all problems of this kind. Two intervals that overlap may still "
    "differ for certain: both strategies answered the same problems, and `minus voting` compares them problem by problem. A "
    "difference is beyond chance where its interval leaves 0 out.",
    "token steps": "what strategies are to be compared at: one that is right more often may only have spent more of them.",
    "invalid answers": "texts without a number. They are wrong and never vote; above 5 % look at the texts first.",
}
"""Word -> what a reader has to know of it."""


class Finding(Protocol):
    """What a run shows of a known failure of the method."""

    @property
    def name(self) -> str:
        """In a word or two."""

    @property
    def sentence(self) -> str:
        """What the data show, with numbers."""

    @property
    def figure(self) -> str | None:
        """The name of the figure that shows it."""

    @property
    def advice(self) -> str:
        """What to try."""


def title(metrics: Metrics) -> str:
    """`tiny-colar on gsm-symbolic`; what is not known is left out."""
    evaluated = metrics.get("evaluated") or {}
    backbone = PurePath(evaluated.get("backbone", {}).get("name") or "a backbone").name
    source = (evaluated.get("data") or {}).get("source")
    return backbone if source is None else f"{backbone} on {PurePath(str(source)).name}"


def facts(metrics: Metrics) -> list[str]:
    """The lines below the tables: what was run, how fast, and how many answers did not parse."""
    speed, nonfinite = metrics["throughput"]["rollouts_per_second"], metrics["nonfinite_rollouts"]
    return [
        f"{metrics['num_problems']} problems, {metrics['num_rollouts']} rollouts each"
        + ("" if speed is None else f", {speed:.1f} rollouts per second"),
        f"invalid answers: {100 * metrics['invalid_answer_rate']:.1f} % of the rollouts",
        *([f"not finite: {nonfinite:,} rollouts, counted as invalid and wrong"] if nonfinite else []),
    ]


def how_made(run: Mapping[str, Any] | None) -> dict[str, str]:
    """How a run was made, label -> value, from the content of run.json; what it does not say is left out."""
    if run is None:
        return {}
    versions = ", ".join(f"{name} {number}" for name, number in run.get("versions", {}).items())
    seconds = None if run.get("seconds") is None else f"{run['seconds']:,.0f} s"
    found = {
        "command": run.get("command"),
        "versions": versions,
        "commit": run.get("git_commit"),
        "device": run.get("device"),
        "precision": run.get("precision"),
        "processes": run.get("num_processes"),
        "dates": f"{run['started']} to {run.get('finished') or 'not finished'}" if "started" in run else None,
        "wall clock": seconds,
    }
    return {label: str(value) for label, value in found.items() if value}

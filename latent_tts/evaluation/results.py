"""The content of metrics.json as objects: every strategy with its accuracy, interval, gain over voting and token steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latent_tts.evaluation.strategies import SINGLE, Strategy, strategies_from_json

Metrics = Mapping[str, Any]
"""The content of metrics.json."""

DASH = "\N{EN DASH}"  # between the ends of an interval


@dataclass(frozen=True)
class Cell:
    """A share in 0..1 and its 95 % interval."""

    value: float
    low: float | None
    high: float | None

    @property
    def bounds(self) -> tuple[float, float]:
        """The ends of the interval; the value itself where there is none."""
        return self.value if self.low is None else self.low, self.value if self.high is None else self.high

    def percent(self) -> str:
        """`79.6`."""
        return f"{100 * self.value:.1f}"

    def interval(self, decimals: int = 1) -> str:
        """`76.0–83.1`, empty where there is none."""
        if self.low is None or self.high is None:
            return ""
        return DASH.join(f"{100 * bound:.{decimals}f}".replace("100.0", "100") for bound in (self.low, self.high))

    def text(self, joint: str, decimals: int = 1) -> str:
        """Value and interval in percent, with `joint` between them."""
        interval = self.interval(decimals)
        return self.percent() + (f"{joint}{interval}" if interval else "")

    def signed(self, joint: str) -> str:
        """A difference and its interval in points, with signs."""
        interval = "" if self.low is None or self.high is None else f"{100 * self.low:+.1f} to {100 * self.high:+.1f}"
        return f"{100 * self.value:+.1f}" + (f"{joint}{interval}" if interval else "")


@dataclass(frozen=True)
class StrategyResult:
    """One strategy at one budget."""

    strategy: Strategy
    accuracy: Cell
    token_steps: float
    difference: Cell | None
    """Paired difference to majority voting over all rollouts; None for voting itself, and where it was not measured."""
    head_room: float | None
    """The share of coverage's head-room that it recovers."""


def strategies(metrics: Metrics) -> list[Strategy]:
    """All that were measured, at every budget; coverage first."""
    return strategies_from_json(metrics["strategies"])


def answers(metrics: Metrics) -> list[Strategy]:
    """The strategies of one answer a problem: greedy, and written reasoning where it was measured."""
    return [one for one in strategies(metrics) if one.kind == "answer" and one != SINGLE]


def curves(metrics: Metrics) -> dict[Strategy, dict[int, Cell]]:
    """Every strategy whose budget is the number of rollouts k, without its budget -> k -> cell; coverage first."""
    found: dict[Strategy, dict[int, Cell]] = {}
    for one in strategies(metrics):
        if one.kind in ("coverage", "aggregation") and one.budget is not None:
            found.setdefault(one.at(None), {})[int(one.budget)] = cell(metrics, one)
    return found


def searches(metrics: Metrics) -> list[Strategy]:
    """Every search, at each of its budgets."""
    return [one for one in strategies(metrics) if one.kind == "search"]


def results(metrics: Metrics) -> list[StrategyResult]:
    """All strategies at their full budgets (searches at each of theirs), coverage, the ceiling, last."""
    top = metrics["num_rollouts"]
    coverage, *aggregations = [one.at(top) for one in curves(metrics)]
    listed = [*answers(metrics), SINGLE, *aggregations, *searches(metrics), coverage]
    return [_result(metrics, one) for one in listed]


def _result(metrics: Metrics, one: Strategy) -> StrategyResult:
    paired = metrics["difference_to_majority_voting"].get(one.key)
    difference = None if paired is None else Cell(paired["mean"], *paired["interval"])
    head_room = metrics["head_room_recovered"].get(one.key if one.kind == "search" else one.method)
    return StrategyResult(one, cell(metrics, one), token_steps(metrics, one), difference, head_room)


def cell(metrics: Metrics, one: Strategy) -> Cell:
    """The accuracy of a strategy with its interval."""
    value = metrics["coverage"] if one.kind == "coverage" else metrics["accuracy"][one.method]
    low, high = metrics["confidence_interval"].get(one.key, (None, None))
    return Cell(value if one.budget is None else value[one.budget], low, high)


def token_steps(metrics: Metrics, one: Strategy) -> float:
    """Positions that went through models for a strategy, per problem."""
    cost = metrics["token_steps"]
    if one == SINGLE:
        return float(cost["rollouts"]["1"])
    if one.kind == "coverage":
        return float(cost["rollouts"][one.budget])
    return float(cost[one.method] if one.budget is None else cost[one.method][one.budget])


def description(metrics: Metrics) -> dict[str, str]:
    """What was evaluated, label -> value; empty where the metrics do not say it."""
    evaluated = metrics.get("evaluated")
    if not evaluated:
        return {}
    backbone, sampler, data = evaluated["backbone"], dict(evaluated["sampler"]), evaluated.get("data") or {}
    options = ", ".join(f"{key}={value!r}" for key, value in sampler.items() if key != "name")
    source = data.get("source", "given in Python")
    lines = {
        "backbone": f"{backbone['name'] or 'given in Python'} ({backbone['kind']}, {backbone['num_latents']} latent thoughts)",
        "sampler": f"{sampler['name']}({options})",
        "data": f"{source}, problems of seed {data.get('seed')}" if source == "gsm-symbolic" else str(source),
        "seed": str(evaluated["seed"]),
    }
    if drawn := evaluated.get("answer_sampler"):
        lines["answers"] = ", ".join(["drawn", *(f"{key} {value:g}" for key, value in drawn.items())])
    if control := evaluated.get("latent_control"):
        after = evaluated.get("truncate_after")
        lines["latents"] = {"zero": "zeros", "shuffle": "of the problem before"}.get(control, f"the first {after}")
    others = {"reward model": evaluated["reward_model"], "written reasoning": evaluated["written"]}
    return lines | {label: other["name"] or "given in Python" for label, other in others.items() if other is not None}

"""The rows of the tables: every strategy with its accuracy, interval, gain over voting, head-room and token steps."""

from __future__ import annotations

from latent_tts.evaluation.results import Metrics, answers, cell, curves, results
from latent_tts.evaluation.strategies import SINGLE


def curve_rows(metrics: Metrics, joint: str, decimals: int = 1) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table over k, in percent; `joint` stands between a value and its interval, shown to `decimals`."""
    rows = {one: {1: cell(metrics, one)} for one in [*answers(metrics), SINGLE]} | curves(metrics)
    ks = [int(k) for k in metrics["coverage"]]
    return ["", *(f"k = {k}" for k in ks)], [
        [one.label(joint, ""), *(cells[k].text(joint, decimals) if k in cells else "" for k in ks)]
        for one, cells in rows.items()
    ]


def result_rows(metrics: Metrics, joint: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of all strategies at their full budgets."""
    return ["", "accuracy", "minus voting", "head-room", "token steps"], [
        [
            row.strategy.label(joint, ""),
            row.accuracy.text(joint),
            "" if row.difference is None else row.difference.signed(joint),
            "" if row.head_room is None else f"{100 * row.head_room:.0f} %",
            f"{row.token_steps:,.0f}",
        ]
        for row in results(metrics)
    ]

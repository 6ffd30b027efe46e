"""From the numbers of metrics.json to what people read: tables for the console and report.md, and the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

Metrics = Mapping[str, Any]
"""The content of metrics.json."""

_LABELS = {"single": "single rollout", "written": "written reasoning", "best_of_n": "best-of-N"}
_METHODS = ("majority_voting", "best_of_n", "weighted_voting", "hybrid", "beam_search", "particle_filtering")
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # Okabe & Ito: told apart by all eyes
_ANSWERS = ("greedy", "written")  # one answer a problem; written where a model that reasons in writing was asked too
DASH = "\N{EN DASH}"  # between the ends of an interval


def label(name: str, joint: str = " (", closing: str = ")") -> str:
    """`best_of_n_last@16` -> `best-of-N @ 16 (last)`: what differs from the defaults stands between `joint` and `closing`."""
    method, _, budget = name.partition("@")
    base = next((known for known in _METHODS if method == known or method.startswith(f"{known}_")), method)
    options = method.removeprefix(base).removeprefix("_").replace("_", ", ")
    text = _LABELS.get(base, base.replace("_", " ")) + (f" @ {budget}" if budget else "")
    return f"{text}{joint}{options}{closing}" if options else text


# Rows ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A share in 0..1 and its 95 % interval."""

    value: float
    low: float | None
    high: float | None

    def percent(self) -> str:
        return f"{100 * self.value:.1f}"

    def interval(self, decimals: int = 1) -> str:
        if self.low is None or self.high is None:
            return ""
        return DASH.join(f"{100 * bound:.{decimals}f}".replace("100.0", "100") for bound in (self.low, self.high))


@dataclass(frozen=True)
class Strategy:
    """One way to an answer at its full budget."""

    name: str
    accuracy: Cell
    token_steps: float
    difference: Cell | None
    """Paired difference to majority voting; None for majority voting itself."""
    head_room: float | None


def curves(metrics: Metrics) -> dict[str, dict[int, Cell]]:
    """Every strategy whose budget is the number of rollouts k: name -> k -> cell; coverage first."""
    found = {"coverage": metrics["coverage"]} | {
        name: value
        for name, value in metrics["accuracy"].items()
        if isinstance(value, Mapping) and set(value) == set(metrics["coverage"])
    }
    return {
        name: {int(k): _cell(metrics, f"{name}@{k}", value) for k, value in curve.items()}
        for name, curve in found.items()
    }


def searches(metrics: Metrics) -> dict[str, float]:
    """Accuracy of every strategy with a budget of its own: `beam_search@4x4` -> value."""
    names = curves(metrics)
    return {
        f"{method}@{budget}": value
        for method, budgets in metrics["accuracy"].items()
        if isinstance(budgets, Mapping) and method not in names
        for budget, value in budgets.items()
    }


def answers(metrics: Metrics) -> list[str]:
    """The strategies of one answer a problem: greedy, and written reasoning where it was measured."""
    return [name for name in _ANSWERS if name in metrics["accuracy"]]


def strategies(metrics: Metrics) -> list[Strategy]:
    """All of them at their full budget, coverage (the ceiling) last."""
    top = str(metrics["num_rollouts"])
    cost = metrics["token_steps"]
    finals = {name: (cell[int(top)], f"{name}@{top}") for name, cell in curves(metrics).items()}
    ceiling = finals.pop("coverage")
    costs = {name: cost[name] for name in answers(metrics)} | {"single": cost["rollouts"]["1"]}
    rows = [
        _strategy(metrics, name, name, _cell(metrics, name, metrics["accuracy"][name]), spent)
        for name, spent in costs.items()
    ]
    rows += [_strategy(metrics, key, name, cell, cost[name][top]) for name, (cell, key) in finals.items()]
    for key, value in searches(metrics).items():
        method, _, budget = key.partition("@")
        rows.append(_strategy(metrics, key, key, _cell(metrics, key, value), cost[method][budget]))
    return [*rows, Strategy(ceiling[1], ceiling[0], cost["rollouts"][top], None, None)]


def _strategy(metrics: Metrics, key: str, head_room_key: str, accuracy: Cell, cost: float) -> Strategy:
    paired = metrics["difference_to_majority_voting"].get(key)
    difference = None if paired is None else Cell(paired["mean"], *paired["interval"])
    return Strategy(key, accuracy, cost, difference, metrics["head_room_recovered"].get(head_room_key))


def _cell(metrics: Metrics, name: str, value: float) -> Cell:
    low, high = metrics["confidence_interval"].get(name, (None, None))
    return Cell(value, low, high)


# Tables -------------------------------------------------------------------------------------------------------------


def curve_rows(metrics: Metrics, joint: str, decimals: int = 1) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table over k, in percent; `joint` stands between a value and its interval, shown to `decimals`."""
    ks = [int(k) for k in metrics["coverage"]]
    rows = {
        name: {1: _cell(metrics, name, metrics["accuracy"][name])} for name in [*answers(metrics), "single"]
    } | curves(metrics)
    return ["", *(f"k = {k}" for k in ks)], [
        [label(name, joint, ""), *(_text(cells.get(k), joint, decimals) for k in ks)] for name, cells in rows.items()
    ]


def strategy_rows(metrics: Metrics, joint: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of all strategies at their full budget."""
    header = ["", "accuracy", "minus voting", "head-room", "token steps"]
    return header, [
        [
            label(row.name, joint, ""),
            _text(row.accuracy, joint),
            _signed(row.difference, joint),
            "" if row.head_room is None else f"{100 * row.head_room:.0f} %",
            f"{row.token_steps:,.0f}",
        ]
        for row in strategies(metrics)
    ]


def _text(cell: Cell | None, joint: str, decimals: int = 1) -> str:
    if cell is None:
        return ""
    interval = cell.interval(decimals)
    return cell.percent() + (f"{joint}{interval}" if interval else "")


def _signed(cell: Cell | None, joint: str) -> str:
    if cell is None:
        return ""
    interval = (
        "" if cell.low is None or cell.high is None else f"{joint}{100 * cell.low:+.1f} to {100 * cell.high:+.1f}"
    )
    return f"{100 * cell.value:+.1f}{interval}"


def console_tables(metrics: Metrics) -> list[Table]:
    """The two tables for a terminal of 80 columns; each interval stands below its value."""
    from rich.box import SIMPLE
    from rich.table import Table

    roomy = len(metrics["coverage"]) <= 5  # else intervals are rounded, which fits 64 rollouts in
    contents = [
        (
            "Accuracy in % after k rollouts, 95 % intervals below",
            curve_rows(metrics, "\n", decimals=int(roomy)),
            int(roomy),
        ),
        ("Every strategy at its full budget", strategy_rows(metrics, "\n"), 0),
    ]
    tables = []
    for title, (header, rows), padding in contents:
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, padding=(0, padding))
        for name in header:
            table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(_dim_second_line(cell) for cell in row))
        tables.append(table)
    return tables


def _dim_second_line(text: str) -> str:
    first, newline, second = text.partition("\n")
    return f"{first}\n[dim]{second}[/dim]" if newline else first


def facts(metrics: Metrics) -> list[str]:
    """The lines below the tables: what was run, how fast, and how many answers did not parse."""
    speed = metrics["throughput"]["rollouts_per_second"]
    return [
        f"{metrics['num_problems']} problems, {metrics['num_rollouts']} rollouts each"
        + ("" if speed is None else f", {speed:.1f} rollouts per second"),
        f"invalid answers: {100 * metrics['invalid_answer_rate']:.1f} % of the rollouts",
    ]


# report.md ----------------------------------------------------------------------------------------------------------


def markdown(metrics: Metrics, description: Mapping[str, str], figures: Mapping[str, str]) -> str:
    """The text of report.md.

    Args:
        metrics: The content of metrics.json.
        description: What was evaluated, as label -> value (backbone, sampler, data, ...).
        figures: Title -> path of the figure relative to the report.
    """
    pictures = {title: f"![{title}]({path})" for title, path in figures.items()}
    parts = [
        "# Parallel test-time scaling",
        "\n".join(f"- {key}: {value}" for key, value in description.items()),
        "\n".join(f"- {line}" for line in facts(metrics)),
        "## Accuracy against the number of rollouts",
        "In percent, with 95 % bootstrap intervals over problems. Coverage is the chance that at least one of k rollouts is "
        "right; an aggregation's accuracy at k is its expectation over the k-subsets of the rollouts.",
        _markdown_table(
            *curve_rows(
                metrics,
                " (",
            ),
            closing=")",
        ),
        pictures.get(ACCURACY_FIGURE, ""),
        "## Every strategy at its full budget",
        "`minus voting` is the paired difference to majority voting in points; `head-room` is the recovered share of the way "
        "from a single rollout to coverage; `token steps` are positions that went through the backbone and the reward model "
        "per problem.",
        _markdown_table(
            *strategy_rows(
                metrics,
                " (",
            ),
            closing=")",
        ),
        pictures.get(COMPUTE_FIGURE, ""),
        "## Diversity of the latent thoughts",
        "Mean pairwise cosine distance between the rollouts of a problem at each step, averaged over problems.",
        pictures.get(DIVERSITY_FIGURE, ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], closing: str) -> str:
    lines = [list(header), ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[cell + closing if " (" in cell else cell for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# Figures ------------------------------------------------------------------------------------------------------------

ACCURACY_FIGURE, COMPUTE_FIGURE, DIVERSITY_FIGURE = "accuracy", "compute", "diversity"


def figures(metrics: Metrics) -> dict[str, Figure]:
    """All figures by name; without diversity where there is a single rollout."""
    drawn = {ACCURACY_FIGURE: accuracy_figure(metrics), COMPUTE_FIGURE: compute_figure(metrics)}
    if any(value is not None for value in metrics["diversity"]["per_step"]):
        drawn[DIVERSITY_FIGURE] = diversity_figure(metrics)
    return drawn


def save_figures(drawn: Mapping[str, Figure], folder: Path) -> dict[str, str]:
    """Writes PNG files; returns name -> path relative to the folder's parent."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})
    return {name: f"{folder.name}/{name}.png" for name in drawn}


def accuracy_figure(metrics: Metrics) -> Figure:
    """Coverage and every aggregation against k, with interval bands, and the greedy answer as a line."""
    figure, axes = _axes("rollouts k", "accuracy in %")
    for colour, (name, cells) in zip(_cycle(), curves(metrics).items(), strict=False):
        _line(axes, list(cells), list(cells.values()), label(name), colour, dashed=name == "coverage")
    for style, name in zip((":", "-."), answers(metrics), strict=False):
        axes.axhline(100 * metrics["accuracy"][name], color="grey", linestyle=style, label=label(name))
    ks = [int(k) for k in metrics["coverage"]]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.legend(fontsize="small")
    return figure


def compute_figure(metrics: Metrics) -> Figure:
    """Accuracy of every strategy against the token steps it takes per problem."""
    figure, axes = _axes("token steps per problem", "accuracy in %")
    cost = metrics["token_steps"]
    for colour, (name, cells) in zip(_cycle(), curves(metrics).items(), strict=False):
        x = [cost["rollouts" if name == "coverage" else name][str(k)] for k in cells]
        _line(axes, x, list(cells.values()), label(name), colour, dashed=name == "coverage")
    found = list(searches(metrics).items())
    points = [(name, metrics["accuracy"][name], cost[name]) for name in answers(metrics)]
    points += [(name, value, cost[name.partition("@")[0]][name.partition("@")[2]]) for name, value in found]
    for marker, (name, value, steps) in zip("osD^vP*X" * 4, points, strict=False):
        cell = _cell(metrics, name, value)
        below = 0.0 if cell.low is None else 100 * (value - cell.low)
        above = 0.0 if cell.high is None else 100 * (cell.high - value)
        axes.errorbar(
            [steps],
            [100 * value],
            yerr=[[max(below, 0)], [max(above, 0)]],
            fmt=marker,
            color="dimgrey",
            label=label(name),
        )
    axes.set_xscale("log")
    ticks = [*cost["rollouts"].values(), max(strategy.token_steps for strategy in strategies(metrics))]
    axes.set_xticks(ticks, [f"{steps:,.0f}" for steps in ticks])
    axes.minorticks_off()
    axes.legend(fontsize="small")
    return figure


def diversity_figure(metrics: Metrics) -> Figure:
    """Diversity at each latent step."""
    figure, axes = _axes("latent step", "mean pairwise cosine distance")
    per_step = metrics["diversity"]["per_step"]
    steps = [step for step, value in enumerate(per_step, start=1) if value is not None]
    axes.plot(steps, [per_step[step - 1] for step in steps], marker="o", color=_COLOURS[0])
    axes.set_ylim(bottom=0)
    if len(steps) <= 16:
        axes.set_xticks(steps)
    return figure


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2))
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.12, top=0.97)
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    return figure, axes


def _cycle() -> list[str]:
    return list(_COLOURS) * 4


def _line(axes: Axes, x: Sequence[float], cells: Sequence[Cell], name: str, colour: str, dashed: bool) -> None:
    axes.plot(
        x, [100 * cell.value for cell in cells], marker="o", color=colour, linestyle="--" if dashed else "-", label=name
    )
    bands = [(at, cell.low, cell.high) for at, cell in zip(x, cells, strict=True) if cell.low is not None]
    if bands:
        at, low, high = zip(*bands, strict=True)
        axes.fill_between(at, [100 * v for v in low], [100 * v for v in high], color=colour, alpha=0.13, linewidth=0)

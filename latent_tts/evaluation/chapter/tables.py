"""Tables of the chapter, each a function of a kept study: header and rows, in percent and points with 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from latent_tts.evaluation.chapter.kept import KeptRun, KeptStudy, controls_in_order, read_kept
from latent_tts.evaluation.chapter.reward_kinds import GAINS, gain, runs_of_kinds
from latent_tts.evaluation.problem_statistics import GIVEN_GREEDY, GIVEN_OTHERS, PLAIN
from latent_tts.evaluation.results import Cell, curves, results, token_steps
from latent_tts.evaluation.strategies import COVERAGE

Table = tuple[list[str], list[list[str]]]


def controls_table(study: KeptStudy) -> Table:
    """Greedy, single rollout, voting and coverage of every control, and what a single rollout loses."""
    header = ["answered after", "greedy", "single rollout", "voting @ N", "coverage @ N", "single, minus own"]
    rows = [
        [
            f"`{run.name}`",
            shown(run.at("greedy")),
            shown(run.at("single")),
            shown(run.at(f"majority_voting@{run.top}")),
            shown(run.at(f"coverage@{run.top}")),
            points(run.difference("single")),
        ]
        for run in controls_in_order(study)
    ]
    return header, rows


def coverage_table(study: KeptStudy) -> Table:
    """Every sampler: diversity, a single rollout, voting and coverage at some k, token steps, and the paired difference."""
    ks = [k for k in (4, 16, 64, 256) if any(k in run.curve("coverage") for run in study.runs)]
    header = [
        "run",
        "cosine distance",
        "greedy",
        "single",
        "voting @ N",
        *(f"coverage @ {k}" for k in ks),
        "N",
        "token steps",
    ]
    header += ["different answers", "coverage by another problem's", "of a number beside the gold"]
    return [*header, f"coverage, minus `{study.runs[0].name}`"], [
        [
            f"`{run.name}`",
            _diversity(run),
            shown(run.at("greedy")),
            shown(run.at("single")),
            shown(run.at(f"majority_voting@{run.top}")),
            *(shown(run.at(f"coverage@{k}")) for k in ks),
            str(run.top),
            f"{token_steps(run.metrics, COVERAGE.at(run.top)):,.0f}",
            "" if run.different_answers is None else f"{run.different_answers:.1f}",
            *("" if one is None else f"{100 * one:.1f}" for one in (run.luck, run.near_miss)),
            points(run.difference_at(f"coverage@{min(run.top, study.runs[0].top)}")),
        ]
        for run in study.runs
    ]


BUDGETS = (260, 450, 850)
"""Token steps per problem at which samplers are compared."""


def spread_table(study: KeptStudy) -> Table:
    """Diversity of the latents beside what it comes to, the most diverse run last."""
    known = [run for run in study.runs if run.metrics["diversity"]["mean"] is not None]
    runs = sorted(known, key=lambda run: float(run.metrics["diversity"]["mean"]))
    rows = [
        [f"`{run.name}`", _diversity(run), shown(run.at("single")), shown(run.at(f"coverage@{run.top}"))]
        for run in runs
    ]
    return ["run", "cosine distance", "single rollout", "coverage @ N"], rows


def equal_steps_table(study: KeptStudy) -> Table:
    """Coverage and voting of every run at the largest k that is known and costs no more than each budget."""
    header = ["run", *(f"{what} within {budget}" for budget in BUDGETS for what in ("coverage", "voting"))]
    return header, [
        [f"`{run.name}`", *(text for budget in BUDGETS for text in _within(run, budget))] for run in study.runs
    ]


def _within(run: KeptRun, budget: int) -> list[str]:
    """`k = 16: 56.4 (51.9-60.8)`, and voting at that k; empty where one rollout costs more."""
    ks = [k for k in run.curve("coverage") if token_steps(run.metrics, COVERAGE.at(k)) <= budget]
    if not ks:
        return ["", ""]
    return [f"k = {ks[-1]}: {shown(run.at(f'coverage@{ks[-1]}'))}", shown(run.at(f"majority_voting@{ks[-1]}"))]


def diversity_table(study: KeptStudy) -> Table:
    """Rank correlation of diversity with success over problems, as it is and with difficulty taken away."""
    header = ["run", "single rollout", "given greedy", "given the other runs", "coverage", "given greedy"]
    header += ["given the other runs"]
    givens = (PLAIN, GIVEN_GREEDY, GIVEN_OTHERS)
    rows = [
        [
            f"`{run.name}`",
            *(
                correlation(run.correlation(outcome, given))
                for outcome in ("single rollout", "coverage")
                for given in givens
            ),
        ]
        for run in study.runs
        if run.correlation("single rollout", PLAIN) is not None
    ]
    return header, rows


def risk_table(study: KeptStudy) -> Table:
    """Wrong answers among those given, when the least sure are withheld."""
    shares = ("1", "0.8", "0.5", "0.2")
    header = ["run", "rule", "area", *(f"{100 * float(share):.0f} % answered" for share in shares)]
    rows = []
    for run in study.runs:
        for rule, risk in run.risks.items():
            cells = [Cell(risk["at"][share]["mean"], *risk["at"][share]["interval"]) for share in shares]
            rows.append([f"`{run.name}`", rule, f"{risk['area']:.3f}", *map(shown, cells)])
    return header, rows


def strategies_table(study: KeptStudy) -> Table:
    """Every strategy of every run at its full budget."""
    header = ["run", "strategy", "accuracy", "minus voting", "head-room", "token steps"]
    rows = [
        [
            f"`{run.name}`",
            row.strategy.label(),
            shown(row.accuracy),
            points(row.difference),
            "" if row.head_room is None else f"{100 * row.head_room:.0f} %",
            f"{row.token_steps:,.0f}",
        ]
        for run in study.runs
        for row in results(run.metrics)
    ]
    return header, rows


def over_k_table(study: KeptStudy) -> Table:
    """Coverage and every aggregation of the study's first run against k, with the token steps of voting."""
    run = study.runs[0]
    found = curves(run.metrics)
    ks = list(run.curve("coverage"))
    rows = [[one.label(), *(shown(cells.get(k)) for k in ks)] for one, cells in found.items()]
    steps = [f"{token_steps(run.metrics, COVERAGE.at(k)):,.0f}" for k in ks]
    return ["", *(f"k = {k}" for k in ks)], [*rows, ["token steps without scores", *steps]]


def sizes_table(study: KeptStudy) -> Table:
    """Every size: what one rollout reaches, voting and coverage at some k, and what a problem costs in parameters x positions."""
    ks = [k for k in (4, 16, 64) if k in study.runs[0].curve("coverage")]
    header = ["parameters", "greedy", "single", *(f"{what} @ {k}" for what in ("voting", "coverage") for k in ks)]
    header += [f"10⁶ parameters x token steps @ {k}" for k in (1, *ks)]
    rows = [
        [
            f"`{run.name}`",
            shown(run.at("greedy")),
            shown(run.at("single")),
            *(shown(run.at(f"{method}@{k}")) for method in ("majority_voting", "coverage") for k in ks),
            *(f"{parameter_steps(run, k):,.0f}" for k in (1, *ks)),
        ]
        for run in study.runs
    ]
    return header, rows


def parameter_steps(run: KeptRun, k: int) -> float:
    """Compute of a problem with k rollouts: millions of parameters (the run is named after them, `1.3M`) times positions."""
    return float(run.name.removesuffix("M")) * token_steps(run.metrics, COVERAGE.at(k))


def reward_table(study: KeptStudy) -> Table:
    """Every kind of reward model: recall@1 in validation, and its paired gains over voting by seed."""
    kinds = runs_of_kinds(study)
    seeds = sorted({seed for runs in kinds.values() for seed in runs})
    header = ["reward model", *(f"recall @ 1, seed {seed}" for seed in seeds)]
    header += [f"{name} minus voting, seed {seed}" for name in GAINS for seed in seeds]
    return header, [
        [
            f"`{kind}`",
            *(_recall(study, kind, seed) for seed in seeds),
            *(points(gain(runs[seed], name) if seed in runs else None) for name in GAINS for seed in seeds),
        ]
        for kind, runs in kinds.items()
    ]


def _recall(study: KeptStudy, kind: str, seed: str) -> str:
    best = study.trainings.get(f"rm-{kind}-{seed}", {}).get("best")
    return "" if best is None else f"{100 * best['value']:.1f}"


TABLES: dict[str, Callable[[KeptStudy], Table]] = {
    "controls": controls_table,
    "coverage": coverage_table,
    "spread": spread_table,
    "equal-steps": equal_steps_table,
    "diversity": diversity_table,
    "risk": risk_table,
    "strategies": strategies_table,
    "over-k": over_k_table,
    "reward": reward_table,
    "sizes": sizes_table,
}
"""By the name that the chapter gives."""


def shown(found: Cell | None) -> str:
    """`44.0 (39.6-48.5)`, empty where there is nothing."""
    if found is None:
        return ""
    interval = found.interval()
    return found.percent() + (f" ({interval})" if interval else "")


def points(found: Cell | None) -> str:
    """`+1.2 (-0.3 to +2.7)`, empty where there is nothing; bold where the interval leaves 0 out."""
    if found is None:
        return ""
    text = f"{found.signed(' (')})" if found.low is not None else found.signed("")
    low, high = found.bounds
    return f"**{text}**" if low > 0 or high < 0 else text


def correlation(found: Cell | None) -> str:
    """`+0.12 (-0.02 to +0.25)`; bold where the interval leaves 0 out."""
    if found is None:
        return ""
    low, high = found.bounds
    text = f"{found.value:+.2f} ({low:+.2f} to {high:+.2f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def _diversity(run: KeptRun) -> str:
    mean = run.metrics["diversity"]["mean"]
    return "" if mean is None else f"{mean:.3f}"


def markdown_table(table: Table) -> str:
    """As the chapter shows it."""
    header, rows = table
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_of_kept(name: str, folder: Path) -> str:
    """The table of a name for the runs that are kept in a folder."""
    return markdown_table(TABLES[name](read_kept(folder)))

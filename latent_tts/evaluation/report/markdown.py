"""The text of report.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from latent_tts.evaluation.report.tables import curve_rows, result_rows
from latent_tts.evaluation.results import Metrics, description
from latent_tts.evaluation.wording import FULL_BUDGET, HOW_TO_READ, OVER_K, Finding, facts, how_made, title


def markdown(
    metrics: Metrics,
    figures: Mapping[str, str],
    run: Mapping[str, Any] | None = None,
    diagnoses: Iterable[Finding] = (),
) -> str:
    """The text of report.md.

    Args:
        metrics: The content of metrics.json.
        figures: Name -> path of the figure relative to the report.
        run: The content of run.json.
        diagnoses: What the run shows of known failures of the method.
    """
    pictures = [f"![{name}]({path})" for name, path in figures.items()]
    made = how_made(run)
    parts = [
        f"# {title(metrics)}",
        "\n".join(f"- {key}: {value}" for key, value in description(metrics).items()),
        "\n".join(f"- {line}" for line in facts(metrics)),
        *diagnoses_section(diagnoses),
        "## Every strategy at its full budget",
        FULL_BUDGET,
        _table(*result_rows(metrics, " (")),
        "## Against the number of rollouts",
        OVER_K,
        _table(*curve_rows(metrics, " (")),
        *(["## Figures", *pictures] if pictures else []),
        "## How to read this",
        "\n".join(f"- **{word}**: {text}" for word, text in HOW_TO_READ.items()),
        "`report.html` beside this file has all of it with sortable tables, and a browser over the problems.",
        *(["## How it was made", _code(made.pop("command", "")), _list(made)] if made else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def diagnoses_section(found: Iterable[Finding]) -> list[str]:
    """Heading and list; empty where there is none."""
    lines = [f"- **{one.name}**: {one.sentence} To try: {one.advice}" for one in found]
    return ["## Diagnoses", "\n".join(lines)] if lines else []


def _list(lines: Mapping[str, str]) -> str:
    return "\n".join(f"- {label}: {value}" for label, value in lines.items())


def _code(command: str) -> str:
    return f"```bash\npython {command}\n```" if command else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(header), ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[f"{cell})" if " (" in cell else cell for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

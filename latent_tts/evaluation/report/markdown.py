"""The text of report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latent_tts.evaluation.report.tables import curve_rows, facts, result_rows
from latent_tts.evaluation.results import Metrics, description

_OVER_K = """In percent, with 95 % intervals over problems. Coverage is the chance that at least one of k rollouts is right; an \
aggregation's accuracy at k is its expectation over the k-subsets of the rollouts."""

_FULL_BUDGET = """`minus voting` is the paired difference to majority voting in points; `head-room` is the recovered share of \
the way from a single rollout to coverage; `token steps` are positions that went through the backbone and the reward model per \
problem."""

_DIVERSITY = "Mean pairwise cosine distance between the rollouts of a problem at each step, averaged over problems."


def markdown(metrics: Metrics, figures: Mapping[str, str]) -> str:
    """The text of report.md.

    Args:
        metrics: The content of metrics.json.
        figures: Title -> path of the figure relative to the report.
    """
    pictures = {title: f"![{title}]({path})" for title, path in figures.items()}
    parts = [
        "# Parallel test-time scaling",
        "\n".join(f"- {key}: {value}" for key, value in description(metrics).items()),
        "\n".join(f"- {line}" for line in facts(metrics)),
        "## Accuracy against the number of rollouts",
        _OVER_K,
        _table(*curve_rows(metrics, " (")),
        pictures.get("accuracy", ""),
        "## Every strategy at its full budget",
        _FULL_BUDGET,
        _table(*result_rows(metrics, " (")),
        pictures.get("compute", ""),
        "## Diversity of the latent thoughts",
        _DIVERSITY,
        pictures.get("diversity", ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(header), ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[f"{cell})" if " (" in cell else cell for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

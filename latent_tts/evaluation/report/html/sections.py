"""The sections of report.html."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from latent_tts.evaluation.problem_outcomes import FILTERS
from latent_tts.evaluation.report.figures import CAPTIONS
from latent_tts.evaluation.report.html.markup import Markup, element, joined
from latent_tts.evaluation.report.html.tables import curves_table, results_table
from latent_tts.evaluation.results import Metrics, StrategyResult, description
from latent_tts.evaluation.results import results as results_of
from latent_tts.evaluation.wording import FULL_BUDGET, HOW_TO_READ, OVER_K, Finding, facts
from latent_tts.evaluation.wording import how_made as how_made_of


def summary(metrics: Metrics) -> Markup:
    """The main figures, and what was evaluated."""
    lines = element("ul", *(element("li", line) for line in facts(metrics)), class_="facts")
    return joined([_tiles(metrics), definitions(description(metrics)), lines])


def _tiles(metrics: Metrics) -> Markup:
    rows = results_of(metrics)
    coverage = rows[-1]
    voting = [row for row in rows if row.strategy.name == "majority_voting"]
    chosen = [row for row in rows if row.strategy.kind in ("aggregation", "search")]
    best = max(chosen, key=lambda row: row.accuracy.value, default=None)
    shown = [row for row in rows if row.strategy.kind == "answer"] + voting
    shown += [best] if best is not None and best not in voting else []
    return element("div", *(_tile(row, row is best) for row in [*shown, coverage]), class_="tiles")


def _tile(row: StrategyResult, best: bool) -> Markup:
    value = element("strong", row.accuracy.percent(), element("small", " %"))
    return element(
        "div",
        element("span", row.strategy.label()),
        value,
        element("small", row.accuracy.interval()),
        class_="tile best" if best else "tile",
    )


def definitions(lines: Mapping[str, str]) -> Markup:
    """Label -> value as a list; empty without lines."""
    pairs = [element("div", element("dt", label), element("dd", value)) for label, value in lines.items()]
    return element("dl", *pairs) if pairs else Markup("")


def diagnoses_section(found: Iterable[Finding], drawn: Iterable[str] = ()) -> Markup:
    """Each with what to try, and a link to its figure where that one is drawn; empty where there is none."""
    names = set(drawn)
    return joined([_diagnosis(one, one.figure in names) for one in found])


def _diagnosis(one: Finding, drawn: bool) -> Markup:
    figure = element("p", element("a", "figure", href=f"#figure-{one.figure}")) if drawn else ""
    said = [element("h3", one.name), prose(one.sentence), prose(f"To try: {one.advice}")]
    return element("article", *said, figure, class_="diagnosis")


def results(metrics: Metrics) -> Markup:
    """The two tables, each below what its columns are."""
    return joined(
        [
            prose(FULL_BUDGET),
            results_table(metrics),
            element("h3", "Against the number of rollouts"),
            prose(OVER_K),
            curves_table(metrics),
            element("details", element("summary", "How to read this"), definitions(HOW_TO_READ), class_="reading"),
        ]
    )


def figures_section(drawn: Mapping[str, bytes], captions: Mapping[str, str] = CAPTIONS) -> Markup:
    """The figures, each inside the page, above what it shows."""
    shown = [_figure(content, name, captions.get(name, name.replace("_", " "))) for name, content in drawn.items()]
    return element("div", *shown, class_="figures") if shown else Markup("")


def _figure(content: bytes, name: str, caption: str) -> Markup:
    return element("figure", image(content, caption), element("figcaption", caption), id=f"figure-{name}")


def image(content: bytes, name: str) -> Markup:
    """An SVG or PNG file as an image that needs no file."""
    kind = "png" if content.startswith(b"\x89PNG") else "svg+xml"
    return element("img", src=f"data:image/{kind};base64,{base64.b64encode(content).decode()}", alt=name)


def browser() -> Markup:
    """The empty browser over problems, which the script fills."""
    filters = [element("button", one.label, type="button", data_filter=name) for name, one in FILTERS.items()]
    search = element(
        "input", type="search", id="search", placeholder="search in questions and ids", aria_label="search"
    )
    controls = element("div", element("div", *filters, id="filters", role="group"), search, class_="controls")
    pager = element("div", *_pager(), class_="pager")
    listed = element(
        "div", element("p", id="count", role="status"), element("ol", id="list", tabindex=0), pager, id="listed"
    )
    hint = element(
        "p",
        "j and k, or the arrows, go from problem to problem; / searches. Columns are sorted by a click.",
        class_="hint",
    )
    missing = element(
        "noscript", element("p", "The problems are shown by the page's own script, which is switched off.")
    )
    return joined(
        [
            missing,
            element("p", id="sample"),
            controls,
            element("div", listed, element("div", id="problem"), class_="browser"),
            hint,
        ]
    )


def _pager() -> Iterable[Markup]:
    yield element("button", "previous", type="button", id="previous")
    yield element("span", id="place")
    yield element("button", "next", type="button", id="next")


def how_made(metrics: Metrics, run: Mapping[str, Any] | None) -> Markup:
    """Command, versions and settings of the run."""
    settings = {key: _shown(value) for key, value in (run or {}).get("settings", {}).items()}
    folded = element("details", element("summary", "All settings"), definitions(settings)) if settings else Markup("")
    return joined([definitions(how_made_of(run)), folded])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def prose(text: str) -> Markup:
    """A paragraph in which `words` between backticks are code."""
    parts = text.split("`")
    return element("p", *(element("code", part) if i % 2 else part for i, part in enumerate(parts)))

"""report.html from metrics, figures and records: its text part by part, so that it need not be in memory whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from latent_tts.evaluation.problem_outcomes import ProblemOutcome, chosen_by
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.html import sections
from latent_tts.evaluation.report.html.document import document
from latent_tts.evaluation.report.html.markup import Markup, element
from latent_tts.evaluation.report.html.payload import BYTE_LIMIT, Payload
from latent_tts.evaluation.results import Metrics
from latent_tts.evaluation.wording import Finding, title


def html_parts(
    metrics: Metrics,
    records: Iterable[Record] | None = None,
    figures: Mapping[str, bytes] | None = None,
    diagnoses: Iterable[Finding] = (),
    run: Mapping[str, Any] | None = None,
    byte_limit: int = BYTE_LIMIT,
) -> Iterator[str]:
    """The text of report.html, part by part; equal for equal arguments.

    Args:
        metrics: The content of metrics.json.
        records: What it was made from, chosen from by the aggregations of the metrics; None leaves the browser over problems out.
        figures: Name -> the content of an SVG or PNG file.
        diagnoses: What the run shows of known failures of the method.
        run: The content of run.json.
        byte_limit: Of the compressed problems; beyond it the page holds a sample and says so.
    """
    body = {
        "Summary": sections.summary(metrics),
        "Diagnoses": sections.diagnoses_section(diagnoses, figures or ()),
        "Results": sections.results(metrics),
        "Figures": sections.figures_section(figures or {}),
        "Problems": Markup("") if records is None else sections.browser(),
        "How it was made": sections.how_made(metrics, run),
    }
    payload = [] if records is None else payload_scripts(metrics, records, byte_limit)
    yield from document(title(metrics), body, payload)


def payload_scripts(metrics: Metrics, records: Iterable[Record], byte_limit: int) -> Iterator[Markup]:
    """The problems, as blocks of data: pages of them, and the index last, as it needs to know the pages."""
    strategies, rule = chosen_by(metrics), (metrics.get("evaluated") or {}).get("answer_rule", "tolerance")
    payload = Payload(byte_limit)
    for record in records:
        payload.add(ProblemOutcome(record, strategies, rule))
    payload.close()
    for number, page in enumerate(payload.pages()):
        yield _data(f"page-{number}", page)
    described = {"strategies": [one.label() for one in strategies]}
    yield _data("index", payload.index(described))


def _data(name: str, content: str) -> Markup:
    return Markup(element("script", Markup(content), type="application/octet-stream", id=name) + "\n")

"""report.html from metrics, figures and records: its text part by part, so that it need not be in memory whole."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from latent_tts.evaluation.problem_outcomes import ProblemOutcome, chosen_by
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.html import sections
from latent_tts.evaluation.report.html.markup import Markup, element, joined
from latent_tts.evaluation.report.html.payload import BYTE_LIMIT, Payload
from latent_tts.evaluation.results import Metrics
from latent_tts.evaluation.wording import Finding, title

_SCRIPTS = ("address.js", "tables.js", "payload.js", "problem.js", "browser.js")


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
        "Diagnoses": sections.diagnoses(diagnoses),
        "Results": sections.results(metrics),
        "Figures": sections.figures(figures or {}),
        "Problems": Markup("") if records is None else sections.browser(),
        "How it was made": sections.how_made(metrics, run),
    }
    payload = [] if records is None else payload_scripts(metrics, records, byte_limit)
    yield from document(title(metrics), body, payload)


def document(heading: str, body: Mapping[str, Markup], payload: Iterable[Markup]) -> Iterator[str]:
    """A whole page: sections that have something to show, then what the browser takes apart by itself."""
    shown = {name: content for name, content in body.items() if content}
    ids = {name: name.lower().replace(" ", "-") for name in shown}
    parts = {
        "title": escape(heading),
        "style": asset("style.css"),
        "style_hash": _hash(asset("style.css")),
        "script": _script(),
        "script_hash": _hash(_script()),
        "navigation": joined([element("a", name, href=f"#{ids[name]}") for name in shown]),
        "sections": joined(
            [element("section", element("h2", name), shown[name], id=ids[name]) for name in shown], "\n"
        ),
    }
    before, after = asset("page.html").split("$payload")
    yield Template(before).substitute(parts)
    yield from payload
    yield Template(after).substitute(parts)


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


@cache
def asset(name: str) -> str:
    """A file that lies beside this one: HTML, CSS or JavaScript."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def _script() -> str:
    return "\n".join(map(asset, _SCRIPTS))


def _hash(text: str) -> str:
    """What the page's policy knows its own style and script by: nothing else of either kind is run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

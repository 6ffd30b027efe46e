"""report.html from metrics, figures and records: its text part by part, so that it need not be in memory whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from latent_tts.answers import AnswerRule
from latent_tts.evaluation.problem_outcomes import ProblemOutcome, answer_rule, chosen_by
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.html import sections
from latent_tts.evaluation.report.html.document import document
from latent_tts.evaluation.report.html.markup import Markup, element
from latent_tts.evaluation.report.html.payload import BYTE_LIMIT, Payload
from latent_tts.evaluation.results import Metrics
from latent_tts.evaluation.strategies import Strategy
from latent_tts.evaluation.wording import Finding, title


def html_parts(
    metrics: Metrics,
    records: Iterable[Record] | PageProblems | None = None,
    figures: Mapping[str, bytes] | None = None,
    diagnoses: Iterable[Finding] = (),
    run: Mapping[str, Any] | None = None,
    byte_limit: int = BYTE_LIMIT,
) -> Iterator[str]:
    """The text of report.html, part by part; equal for equal arguments.

    Args:
        metrics: The content of metrics.json.
        records: What it was made from, chosen from by the aggregations of the metrics, or what the page holds of it; None leaves
            the browser over problems out.
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
    payload = [] if records is None else problems_of(metrics, records, byte_limit).scripts()
    yield from document(title(metrics), body, payload)


class PageProblems:
    """What the page holds of the problems of a run, which are taken in one at a time.

    Args:
        strategies: Those whose choices are shown.
        rule: When an answer equals the gold one.
        byte_limit: Of the compressed problems.
    """

    def __init__(self, strategies: Sequence[Strategy], rule: AnswerRule, byte_limit: int = BYTE_LIMIT) -> None:
        self._strategies, self._rule = strategies, rule
        self._payload = Payload(byte_limit)

    def add(self, record: Record) -> None:
        """Takes one problem in."""
        self._payload.add(ProblemOutcome(record, self._strategies, self._rule))

    def extend(self, later: PageProblems) -> None:
        """Takes in the problems that follow, which had room enough (`PART_ROOM`)."""
        self._payload.extend(later._payload)

    def scripts(self) -> Iterator[Markup]:
        """Blocks of data: pages of problems, and the index last, as it needs to know the pages."""
        self._payload.close()
        for number, page in enumerate(self._payload.pages()):
            yield _data(f"page-{number}", page)
        yield _data("index", self._payload.index({"strategies": [one.label() for one in self._strategies]}))


def problems_of(metrics: Metrics, records: Iterable[Record] | PageProblems, byte_limit: int) -> PageProblems:
    """Of records, which are gone through once; what is of the page already is returned as it is."""
    if isinstance(records, PageProblems):
        return records
    problems = PageProblems(chosen_by(metrics), answer_rule(metrics), byte_limit)
    for record in records:
        problems.add(record)
    return problems


def _data(name: str, content: str) -> Markup:
    return Markup(element("script", Markup(content), type="application/octet-stream", id=name) + "\n")

"""report.html in a browser: its script runs without an error, and shows what the address asks for."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import pytest

from latent_tts.evaluation.problem_outcomes import ProblemOutcome, chosen_by
from latent_tts.evaluation.report.figure_files import figure_bytes
from latent_tts.evaluation.report.figures import figures
from latent_tts.evaluation.report.html import html_parts
from latent_tts.files.whole import write_whole
from tests.test_report import EVALUATED, make_metrics
from tests.test_report_html import HOSTILE, RUN, records

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=10000"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium here (on Debian: apt-get install chromium)"),
]


class Shown(HTMLParser):
    """What a page shows: the texts of the cells of each table by row, and of other elements by id or class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.items: list[str] = []
        self.pressed: list[str | None] = []
        self.ready = False
        self.images = 0
        self.by_class: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.images += tag == "img"
        self.ready |= tag == "body" and attributes.get("data-ready") == "true"
        if attributes.get("aria-pressed") == "true":
            self.pressed.append(attributes.get("data-filter"))
        if tag in ("img", "input", "meta", "link", "br"):
            return
        self.open.append((tag, attributes))
        if tag == "table":
            self.tables[str(attributes.get("id"))] = []
        elif tag == "tr" and self.tables:
            list(self.tables.values())[-1].append([])
        elif tag in ("td", "th") and self.tables:
            list(self.tables.values())[-1][-1].append("")
        elif tag == "li":
            self.items.append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tags = [tag for tag, _ in self.open]
        if "td" in tags or "th" in tags:
            list(self.tables.values())[-1][-1][-1] += data
        if "li" in tags:
            self.items[-1] += data
        for _, attributes in self.open:
            for name in (attributes.get("class"), attributes.get("id")):
                if name:
                    self.by_class[name] = self.by_class.get(name, "") + data


def opened(path: Path, **address: str) -> Shown:
    """The page as the browser has it after its script has run; an error or a refusal of the browser fails the test."""
    done = subprocess.run(
        [
            str(BROWSER),
            *OPTIONS,
            f"--user-data-dir={path.parent / 'profile'}",
            "--dump-dom",
            f"{path.as_uri()}#{urlencode(address)}",
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not said, said
    shown = Shown(done.stdout)
    assert shown.ready
    return shown


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of 120 problems, the first of which is hostile, and what it was made from."""
    metrics = make_metrics() | {"evaluated": EVALUATED}
    rows = records(120)
    rows[0] = replace(rows[0], question=HOSTILE, rollouts=tuple(replace(one, text=HOSTILE) for one in rows[0].rollouts))
    drawn = {name: figure_bytes(figure, "svg") for name, figure in figures(metrics).items()}
    path = tmp_path_factory.mktemp("a folder, ünd blank") / "report.html"
    write_whole(path, html_parts(metrics, rows, drawn, run=RUN))
    return path, metrics, rows, len(drawn)


def test_the_page_shows_tables_figures_and_problems_as_text(page):
    path, metrics, rows, num_figures = page
    shown = opened(path)
    assert [row[0] for row in shown.tables["strategies"][1:]][:3] == [
        "greedy",
        "single rollout",
        "majority voting @ 16",
    ]
    assert shown.images == num_figures and shown.pressed == ["all"]
    listed = [item for item in shown.items if "greedy" in item]
    assert len(listed) == 50 and listed[0].startswith(f"1. {HOSTILE}")
    assert "120 of 120 problems" in shown.by_class["count"] and "1\N{EN DASH}50 of 120" in shown.by_class["place"]
    assert shown.by_class["question"] == HOSTILE
    assert [row[-1] for row in shown.tables["rollouts"][1:]] == [HOSTILE] * 16
    assert [row[0] for row in shown.tables["choices"][1:]] == [one.label() for one in chosen_by(metrics)]


def test_the_address_chooses_filter_search_problem_and_order(page):
    path, metrics, rows, _ = page
    outcomes = [ProblemOutcome(record, chosen_by(metrics)) for record in rows]
    expected = [i for i, one in enumerate(outcomes) if "missed" in one.filters and "1" in one.record.question]
    chosen = rows[expected[-1]]
    shown = opened(path, filter="missed", search="1", problem=chosen.problem_id, sort="strategies.1.desc")
    accuracies = [float(row[1]) for row in shown.tables["strategies"][1:]]
    assert accuracies == sorted(accuracies, reverse=True) and len(set(accuracies)) > 1
    listed = [int(re.match(r"\d+", item).group()) for item in shown.items if "greedy" in item]
    assert 1 < len(expected) <= 50 and listed == [i + 1 for i in expected]
    assert shown.pressed == ["missed"] and shown.by_class["question"] == chosen.question
    votes = {row[0]: int(row[2]) for row in shown.tables["votes"][1:]}
    answers = [rollout.answer for rollout in chosen.rollouts]
    assert votes == {"no answer" if a is None else f"{a:.0f}": answers.count(a) for a in set(answers)}
    scores = [float(row[3]) for row in shown.tables["rollouts"][1:]]
    assert scores == pytest.approx([sum(one.step_scores) for one in chosen.rollouts], abs=0.01)

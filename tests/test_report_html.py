"""report.html: what is in it, that nothing of the data is taken for HTML, and that it stays within its bound."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from configparser import ConfigParser
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from latent_tts.aggregation import BestOfN, MajorityVoting
from latent_tts.evaluation import report
from latent_tts.evaluation.comparison import ComparedRun, Comparison
from latent_tts.evaluation.problem_outcomes import FILTERS, ProblemOutcome, chosen_by
from latent_tts.evaluation.problem_values import choose
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.figures import COMPARISON_CAPTIONS
from latent_tts.evaluation.report.html import comparison_html, html_parts
from latent_tts.evaluation.report.html.markup import element
from latent_tts.evaluation.report.html.payload import Payload
from latent_tts.metrics.intervals import Interval
from tests.records import SEARCH, make_record
from tests.test_report import EVALUATED, make_metrics

HOSTILE = "</script><img src=x onerror=alert(1)>&lt;$payload$title"
SOURCES = Path(__file__).parents[1] / "latent_tts" / "evaluation" / "report" / "html"
RUN = {"command": f"evaluate.py {HOSTILE}", "versions": {"torch": "2"}, "settings": {"data.source": HOSTILE}}


def records(count: int = 8, question: str = "What is {}?", num_rollouts: int = 16) -> list[Record]:
    made = [make_record(seed, num_rollouts, searches=(SEARCH,)) for seed in range(count)]
    aggregations = make_aggregations()
    return [replace(one, question=question.format(i), chosen=choose(one, aggregations)) for i, one in enumerate(made)]


def make_aggregations():
    return [MajorityVoting(), BestOfN("mean")]


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    return make_metrics() | {"evaluated": EVALUATED}


class Blocks(HTMLParser):
    """What a browser makes of a page: the tags with their attributes, the texts, and the blocks of data by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.places: list[int] = []  # of the tag before each text
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append((self.tags[-1][1], data))
        self.texts.append(data)
        self.places.append(len(self.tags) - 1)

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", {}))

    def unpacked(self, name: str) -> Any:
        (content,) = [text for attributes, text in self.scripts if attributes.get("id") == name]
        return json.loads(zlib.decompress(base64.b64decode(content), wbits=-zlib.MAX_WBITS))


def page_of(metrics, rows, **options) -> Blocks:
    return Blocks("".join(html_parts(metrics, rows, **options)))


def test_every_problem_is_in_the_page_with_all_of_its_rollouts(metrics):
    rows = records()
    page = page_of(metrics, rows)
    index = page.unpacked("index")
    assert index["strategies"] == [one.label() for one in chosen_by(metrics)]
    for record, row in zip(rows, index["problems"], strict=True):
        entry = page.unpacked(f"page-{row[-2]}")[row[-1]]
        assert row[1:4] == [record.problem_id, record.question, record.gold]
        assert entry["texts"] == [one.text for one in record.rollouts]
        assert entry["answers"] == [one.answer for one in record.rollouts]
        assert entry["right"] == "".join("01"[one.correct] for one in record.rollouts)
        assert entry["num_latents"] == [one.num_latents for one in record.rollouts]
        for kept, one in zip(entry["step_scores"], record.rollouts, strict=True):
            assert kept == pytest.approx(one.step_scores, rel=5e-4)
        found = ProblemOutcome(record, chosen_by(metrics)).choices
        assert [chosen[:2] for chosen in entry["chosen"]] == [[one.answer, one.correct] for one in found]


def test_the_filters_of_the_index_are_those_of_the_outcomes(metrics):
    rows = records()
    index = page_of(metrics, rows).unpacked("index")
    expected = [set(ProblemOutcome(record, chosen_by(metrics)).filters) for record in rows]
    names = [name for name, _, _ in index["filters"]]
    assert [{name for i, name in enumerate(names) if row[4] >> i & 1} for row in index["problems"]] == expected
    assert {name: count for name, _, count in index["filters"]} == {
        name: sum(name in filters for filters in expected) for name in FILTERS
    }


def test_nothing_of_the_data_is_taken_for_html(metrics):
    backbone = {"name": HOSTILE, "kind": "coconut", "num_latents": 6}
    evaluated = EVALUATED | {"backbone": backbone, "data": {"source": HOSTILE}}
    rows = [replace(one, problem_id=HOSTILE + one.problem_id) for one in records(question=HOSTILE + "{}")]
    page = page_of(metrics | {"evaluated": evaluated}, rows, run=RUN, figures={HOSTILE: b"<svg onload=alert(1)>"})
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert (
        len(images) == 1 and images[0]["src"].startswith("data:image/svg+xml;base64,") and images[0]["alt"] == HOSTILE
    )
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    *blocks, own = page.scripts
    assert own[0] == {} and [tag for tag, _ in page.tags].count("script") == len(page.scripts)
    assert all(re.fullmatch("[A-Za-z0-9+/=]+", text) for _, text in blocks)
    assert any(HOSTILE in text for text in page.texts)
    assert page.unpacked("index")["problems"][0][2] == HOSTILE + "0"


def test_the_policy_lets_the_pages_own_script_and_style_run_and_nothing_else(metrics):
    text = "".join(html_parts(metrics, records()))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    for kind in ("script", "style"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy


def test_the_page_needs_nothing_from_elsewhere(metrics):
    text = "".join(html_parts(metrics, records(), run=RUN))
    links = re.findall(r"""(?:src|href|action)=["']([^"']*)|url\(([^)]*)\)|@import|fetch\(|import\(""", text)
    assert {link[0].partition(":")[0][:1] for link in links} <= {"#", "d"}  # sections of the page, and data:


def test_every_number_of_the_tables_is_there_with_its_interval(metrics):
    page = page_of(metrics, None)
    texts = " ".join(page.texts)
    for key, interval in metrics["confidence_interval"].items():
        if "@1" not in key or key.endswith("@16"):
            low, high = (f"{100 * bound:.1f}".replace("100.0", "100") for bound in interval)
            assert f"{low}\N{EN DASH}{high}" in texts, key
    assert not [attributes for tag, attributes in page.tags if attributes.get("id") in ("index", "problem")]


def test_equal_records_give_equal_bytes(metrics):
    assert "".join(html_parts(metrics, records(), run=RUN)) == "".join(html_parts(metrics, iter(records()), run=RUN))


def payload_of(count: int, byte_limit: int, order: int = 1) -> Payload:
    payload = Payload(byte_limit)
    rows = [replace(make_record(seed % 50, 64), problem_id=f"p{seed}") for seed in range(count)]
    for record in rows[::order]:
        payload.add(ProblemOutcome(record, []))
    payload.close()
    return payload


def shown(payload: Payload) -> dict[str, Any]:
    index = json.loads(zlib.decompress(base64.b64decode(payload.index({})), wbits=-zlib.MAX_WBITS))
    pages = [json.loads(zlib.decompress(base64.b64decode(page), wbits=-zlib.MAX_WBITS)) for page in payload.pages()]
    return {row[1]: pages[row[-2]][row[-1]] for row in index["problems"]}


@pytest.mark.slow
def test_beyond_the_bound_a_sample_stays_that_depends_on_ids_alone():
    """All of 300 problems take several pages; within an eighth of their bytes about an eighth of them stays."""
    everything = payload_of(300, 10**9)
    size = sum(len(page) * 3 // 4 for page in everything.pages())
    some = payload_of(300, size // 8)
    assert everything.num_shown == 300 and 5 <= some.num_shown <= 60
    assert sum(len(page) * 3 // 4 for page in some.pages()) <= size // 8
    assert some.num_problems == 300 and some.counts == everything.counts
    kept, all_kept = shown(some), shown(everything)
    assert kept == {problem_id: all_kept[problem_id] for problem_id in kept}
    backwards = shown(payload_of(300, size // 8, order=-1))
    assert set(backwards) <= set(kept) or set(kept) <= set(backwards)


def test_text_that_is_no_markup_is_escaped_in_children_and_attributes():
    made = element("p", HOSTILE, element("b", "<"), title='"><script>', hidden=True, lang=None)
    assert made == (
        '<p title="&quot;&gt;&lt;script&gt;" hidden>&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&amp;lt;$payload$title'
        "<b>&lt;</b></p>"
    )


def test_every_file_of_the_page_is_shipped():
    setup = ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    patterns = setup["options.package_data"]["latent_tts.evaluation.report.html"].split()
    shipped = {path for pattern in patterns for path in SOURCES.glob(pattern)}
    assert {path for path in SOURCES.iterdir() if path.is_file() and path.suffix != ".py"} == shipped


@dataclass(frozen=True)
class Found:
    name: str = "coverage is flat <early>"
    sentence: str = "From 4 to 16 rollouts it gains 0.1 points."
    figure: str | None = "accuracy"
    advice: str = "Raise `--model.sampler.sigma`."


def test_diagnoses_stand_in_both_reports_with_what_to_try(metrics):
    page = page_of(metrics, None, diagnoses=[Found()], figures={"accuracy": b"<svg/>"})
    said = " ".join(page.texts)
    assert "coverage is flat <early>" in said and "From 4 to 16 rollouts" in said and "To try: Raise" in said
    assert "--model.sampler.sigma" in page.texts and ("a", {"href": "#figure-accuracy"}) in page.tags
    assert ("figure", {"id": "figure-accuracy"}) in page.tags
    without = page_of(metrics, None, diagnoses=[Found()])
    assert ("a", {"href": "#figure-accuracy"}) not in without.tags
    text = report.markdown(metrics, {}, diagnoses=[Found()])
    assert "- **coverage is flat <early>**: From 4 to 16 rollouts it gains 0.1 points. To try: Raise `--model" in text
    assert "Diagnoses" not in report.markdown(metrics, {}) and "Diagnoses" not in "".join(html_parts(metrics))


def test_several_runs_are_one_table_with_their_differences(metrics):
    """The difference of voting is that of the comparison, bold as its interval leaves 0 out; coverage's is not."""
    voting, coverage = "majority_voting", "coverage"
    differences = {voting: Interval(0.1, 0.05, 0.15), coverage: Interval(-0.02, -0.04, 0.01)}
    base = ComparedRun("a", Path("runs/a"), "sigma=0.3", metrics, {}, {})
    other = ComparedRun("b", Path("runs/b"), HOSTILE, metrics, {}, differences)
    page = Blocks(
        comparison_html(Comparison((base, other), 0, 8), {"coverage_over_k": b"<svg/>"}, ["8 problems"], [Found()])
    )
    assert page.texts.count(HOSTILE) == 1 + len(
        report.results(metrics)
    )  # in the list of runs, and in a row for each strategy
    assert page.texts.count("+10.0") == 1 and page.tags[before(page, "+10.0")][0] == "b"
    assert page.texts.count("-2.0") == 1 and page.tags[before(page, "-2.0")][0] == "span"
    caption = COMPARISON_CAPTIONS["coverage_over_k"]
    assert {"2 runs on 8 problems", "8 problems", caption, Found.name, Found.sentence} <= set(page.texts)
    assert {attributes.get("id") for tag, attributes in page.tags if tag == "table"} == {"comparison"}


def before(page: Blocks, text: str) -> int:
    """The place of the tag that holds a text."""
    return page.places[page.texts.index(text)]

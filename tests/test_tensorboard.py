"""What TensorBoard reads of a finished run is what was measured, and nothing in it can be misread."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from callbacks.logged_results import log_results
from latent_tts.aggregation import Aggregation, BestOfN, MajorityVoting
from latent_tts.evaluation.clock import RolloutClock
from latent_tts.evaluation.diagnoses import Diagnosis
from latent_tts.evaluation.problem_values import choose
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.examples import KINDS, Examples, kind_of
from latent_tts.evaluation.report.tensorboard import SCORES, final_metrics, hyperparameters, write_tensorboard
from latent_tts.evaluation.results import cell, results, strategies
from latent_tts.evaluation.summary import EvaluationMetrics
from tests.records import SEARCH, make_record
from tests.test_report import EVALUATED

PARTS: list[Aggregation] = [MajorityVoting(), BestOfN("mean")]
DIAGNOSIS = Diagnosis("coverage is flat", "It gains nothing.", "accuracy", "More noise.")
SMOOTHED = "_set_smoothing_to_0"


def make_records() -> list[Record]:
    records = [make_record(seed, 4, searches=(SEARCH,)) for seed in range(12)]
    return [replace(record, chosen=choose(record, PARTS)) for record in records]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return make_records()


def make_metrics(records: list[Record]) -> dict[str, Any]:
    found = EvaluationMetrics(4, 3, PARTS, (SEARCH,))
    for record in records:
        found.update(record)
    evaluated = {"evaluated": EVALUATED | {"written": None}}
    return evaluated | found.compute() | {"throughput": {"rollouts_per_second": 118.0}}


@pytest.fixture(scope="module")
def metrics(records: list[Record]) -> Mapping[str, Any]:
    return make_metrics(records)


@pytest.fixture(scope="module")
def folder(metrics: Mapping[str, Any], records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    where, picture = tmp_path_factory.mktemp("tensorboard"), tmp_path_factory.mktemp("figures") / "accuracy.png"
    Figure(figsize=(2, 1)).savefig(picture, dpi=30)
    live = add_live_point(where)
    for _ in range(2):  # the second time in place of the first
        write_tensorboard(metrics, {"accuracy": picture}, where, records, [DIAGNOSIS])
    assert live in where.iterdir()
    return where


def add_live_point(folder: Path) -> Path:
    """What was logged while the run went on."""
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar("live/greedy", 0.25, 3)
        writer.add_scalar("live/greedy", 0.5, 4)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={HISTOGRAMS: 0}).Reload()


def test_no_tag_is_of_two_kinds_and_no_curve_is_smoothed_unawares(events: EventAccumulator, folder: Path) -> None:
    assert len(list(folder.glob("events.out.tfevents.*"))) == 2
    tags = events.Tags()
    scalars, images, tensors, histograms = (set(tags[kind]) for kind in ("scalars", "images", "tensors", "histograms"))
    assert len(scalars | images | tensors | histograms) == sum(map(len, (scalars, images, tensors, histograms)))
    curves = {tag for tag in scalars if len(events.Scalars(tag)) > 1} - {"live/greedy"}
    assert curves and all(SMOOTHED in tag for tag in curves)
    assert images == {"figures/accuracy"}


def test_a_figure_is_shown_as_its_file_has_it(events: EventAccumulator) -> None:
    (picture,) = events.Images("figures/accuracy")
    assert (picture.width, picture.height) == (60, 30) and picture.encoded_image_string.startswith(b"\x89PNG")


def test_final_figures_are_those_of_the_metrics_and_their_descriptions_have_the_intervals(
    events: EventAccumulator, metrics: Mapping[str, Any]
) -> None:
    for one in results(metrics):
        tag = "final/" + one.strategy.key.replace("@", "_")
        (event,) = events.Scalars(tag)
        assert event.value == pytest.approx(one.accuracy.value, abs=1e-6)
        assert one.accuracy.interval() in events.SummaryMetadata(tag).summary_description
    (speed,) = events.Scalars("final/rollouts_per_second")
    assert speed.value == 118


def test_one_chart_holds_every_strategy_and_one_each_between_the_ends_of_its_interval(
    events: EventAccumulator, metrics: Mapping[str, Any]
) -> None:
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    category, live = layout.category
    shown = reversed(category.chart)  # TensorBoard begins with the last one
    over_k, *each, over_steps = ({series.value: series for series in chart.margin.series} for chart in shown)
    methods = {one.method for one in strategies(metrics) if one.kind in ("coverage", "aggregation")}
    assert names_of(over_k) == {name for one in each for name in names_of(one)} == methods
    assert all(line.lower == line.value == line.upper for line in (*over_k.values(), *over_steps.values()))
    assert names_of(over_steps) == methods | {
        "greedy",
        "single",
        SEARCH.key.replace("@", "_"),
    }
    for one in strategies(metrics):
        if one.kind in ("coverage", "aggregation") and one.budget is not None:
            tag = f"over_k{SMOOTHED}/{one.method}"
            (series,) = [chart[tag] for chart in each if tag in chart]
            expected = cell(metrics, one)
            point = [at(events, tag, int(one.budget)) for tag in (series.lower, series.value, series.upper)]
            assert point == pytest.approx([expected.bounds[0], expected.value, expected.bounds[1]], abs=1e-6)
    *bands, lines = live.chart
    assert {one.value for one in lines.margin.series} >= {"live/greedy"} and len(bands) == len(lines.margin.series)


def names_of(chart: Mapping[str, Any]) -> set[str]:
    return {tag.rpartition("/")[2] for tag in chart}


def at(events: EventAccumulator, tag: str, step: int) -> float:
    (found,) = [event.value for event in events.Scalars(tag) if event.step == step]
    return float(found)


def test_scores_of_wrong_and_right_rollouts_are_one_card(events: EventAccumulator, records: list[Record]) -> None:
    wrong, right = events.Histograms(SCORES)
    num_right = sum(one.correct for record in records for one in record.rollouts)
    assert (wrong.step, right.step) == (0, 1)
    assert right.histogram_value.num == num_right and wrong.histogram_value.num == 12 * 4 - num_right
    # every problem's scores are around its own mean, so that all of them together sum to zero
    assert wrong.histogram_value.sum + right.histogram_value.sum == pytest.approx(0, abs=1e-9)


def test_problems_and_diagnoses_are_text(events: EventAccumulator, records: list[Record]) -> None:
    texts = {
        tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }
    problems = {tag: text for tag, text in texts.items() if tag.startswith("problems/")}
    kinds = {kind_of(record) for record in records}
    assert len(kinds) > 1 and {next(kind for kind in KINDS if kind in tag) for tag in problems} == kinds
    assert sum("What is 0?" in text for text in problems.values()) == 1
    assert all("majority_voting" in text for text in problems.values())
    (said,) = [text for tag, text in texts.items() if tag.startswith("diagnoses/")]
    assert DIAGNOSIS.sentence in said and DIAGNOSIS.advice in said


def test_of_each_kind_of_problem_the_first_are_shown(records: list[Record]) -> None:
    examples = Examples(per_kind=1)
    for record in records:
        examples.add(record)
    for kind, text in examples.texts():
        first = next(record for record in records if kind_of(record) == kind)
        assert f"**{first.problem_id}**" in text


def test_hyperparameters_stand_beside_the_final_figures(events: EventAccumulator, metrics: Mapping[str, Any]) -> None:
    def content(tag: str) -> HParamsPluginData:
        return HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)

    values = content("_hparams_/session_start_info").session_start_info.hparams
    assert values["num_rollouts"].number_value == 4 and values["sampler.sigma"].number_value == 0.5
    assert values["sampler.name"].string_value == "AdditiveGaussianNoise"
    shown = {info.name.tag for info in content("_hparams_/experiment").experiment.metric_infos}
    assert shown == set(final_metrics(metrics)) and shown <= set(events.Tags()["scalars"])


def test_a_logger_of_files_gets_the_final_figures(metrics: Mapping[str, Any], tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="csv", version="")
    log_results([logger], metrics, tmp_path)
    (row,) = csv.DictReader((tmp_path / "csv" / "metrics.csv").read_text().splitlines())
    assert {tag: float(row[tag]) for tag in final_metrics(metrics)} == pytest.approx(final_metrics(metrics))
    assert yaml.safe_load((tmp_path / "csv" / "hparams.yaml").read_text()) == hyperparameters(metrics)


def test_scoring_counts_in_one_of_the_two_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([2.0, 5.0, 8.0])  # drawn after 2 s, scored from 5 to 8
    monkeypatch.setattr("latent_tts.evaluation.clock.time.perf_counter", lambda: next(now))
    clock = RolloutClock()
    assert clock.speeds == {}
    clock.add(0.0, 30, torch.device("cpu"))
    assert clock.speeds == {"rollouts_per_second": 15.0}
    with clock.scoring():
        pass
    assert clock.speeds == {"rollouts_per_second": 15.0, "rollouts_per_second_with_scoring": 6.0}

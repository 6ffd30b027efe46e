"""The results of a run for TensorBoard, as functions of metrics and records; docs/watching.md says what every tag means.

A number that people read has one point, so that TensorBoard's smoothing cannot move it. Curves have several: they are shown with
their intervals, and never smoothed, by the margin charts of CUSTOM SCALARS; elsewhere they need what their tags say.

What is logged while a run goes on lies in the same folder, and so is of the same run of TensorBoard's; the files of the results
have names of their own, by which they are replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latent_tts.evaluation.diagnoses import Diagnosis
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.event_files import (
    Margins,
    add_hyperparameters,
    add_layout,
    add_png,
    add_scalar,
    tag_name,
)
from latent_tts.evaluation.report.examples import Examples
from latent_tts.evaluation.report.score_histograms import ScoreSamples
from latent_tts.evaluation.results import Cell, Metrics, StrategyResult, curves, description, results
from latent_tts.evaluation.results import token_steps as token_steps_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

OVER_K, OVER_STEPS = "over_k_set_smoothing_to_0", "over_token_steps_set_smoothing_to_0"
SCORES = "scores/step_0_wrong_step_1_right"
LIVE = "live"
"""First part of the tags of what is logged while a run goes on."""
_ENDING = ".results"
_EVENTS = "events.out.tfevents.*"


def live_charts(margins: Margins) -> dict[str, dict[str, Margins]]:
    """The charts of CUSTOM SCALARS of what is logged while a run goes on."""
    return {"While it runs": {"problems done": margins}}


def write_tensorboard(
    metrics: Metrics,
    pictures: Mapping[str, Path],
    folder: Path,
    records: Iterable[Record] | ShownRecords | None = None,
    diagnoses: Iterable[Diagnosis] = (),
) -> None:
    """Writes the event file of a run's results anew.

    Args:
        metrics: The content of metrics.json.
        pictures: PNG files of figures, by name.
        folder: Where it goes. Earlier results in it are replaced; what was logged while the run went on stays.
        records: What the metrics were made from, gone through once, or what is shown of it; None leaves out texts and histograms.
        diagnoses: What the run shows of known failures of the method.
    """
    from torch.utils.tensorboard import SummaryWriter

    for earlier in folder.glob(_EVENTS + _ENDING):
        earlier.unlink()  # they would be drawn beside these
    was_watched = any(folder.glob(_EVENTS))
    with SummaryWriter(str(folder), filename_suffix=_ENDING) as writer:
        _add_finals(writer, metrics)
        charts = {"Results": _add_curves(writer, metrics)}
        if was_watched:
            charts |= live_charts(Margins(LIVE, [tag_name(one.strategy) for one in results(metrics)]))
        add_layout(writer, charts)
        for name, path in pictures.items():
            add_png(writer, f"figures/{name}", path.read_bytes())
        if records is not None:
            _add_records(writer, shown_of(records))
        for one in diagnoses:
            writer.add_text(f"diagnoses/{one.name.replace(' ', '_')}", f"{one.sentence}\n\nTo try: {one.advice}")
        add_hyperparameters(writer, hyperparameters(metrics), list(final_metrics(metrics)))


def final_metrics(metrics: Metrics) -> dict[str, float]:
    """Every number that a run ends with, by tag: accuracies and coverage at full budgets, and what else has one value."""
    found = {f"final/{tag_name(one.strategy)}": one.accuracy.value for one in results(metrics)}
    rest = {
        "final/invalid_answer_rate": metrics["invalid_answer_rate"],
        "final/diversity": metrics["diversity"]["mean"],
        "final/rollouts_per_second": (metrics.get("throughput") or {}).get("rollouts_per_second"),
    }
    return found | {tag: float(value) for tag, value in rest.items() if value is not None}


def hyperparameters(metrics: Metrics) -> dict[str, str | float]:
    """What was evaluated, one value a name: the columns of HPARAMS."""
    evaluated = metrics.get("evaluated") or {}
    sampler = {f"sampler.{key}": value for key, value in (evaluated.get("sampler") or {}).items()}
    told = {key: value for key, value in description(metrics).items() if key not in ("sampler", "seed")}
    counts = {
        "num_rollouts": metrics["num_rollouts"],
        "num_problems": metrics["num_problems"],
        "seed": evaluated.get("seed"),
    }
    found = counts | {key.replace(" ", "_"): value for key, value in told.items()} | sampler
    return {
        key: value if isinstance(value, int | float) else str(value)
        for key, value in found.items()
        if value is not None
    }


def _add_finals(writer: SummaryWriter, metrics: Metrics) -> None:
    intervals = {f"final/{tag_name(one.strategy)}": _in_words(one) for one in results(metrics)}
    for tag, value in final_metrics(metrics).items():
        add_scalar(writer, tag, value, metrics["num_problems"], intervals.get(tag, ""))


def _in_words(one: StrategyResult) -> str:
    interval = one.accuracy.interval()
    return f"{one.strategy.label()}: {one.accuracy.percent()} %" + (f", 95 % interval {interval}" if interval else "")


def _add_curves(writer: SummaryWriter, metrics: Metrics) -> dict[str, Margins]:
    """What they go against -> the curves."""
    over_k, over_steps = Margins(OVER_K), Margins(OVER_STEPS, bands=False)
    for curve, cells in curves(metrics).items():
        for k, cell in cells.items():
            over_k.add(writer, curve.method, _row(cell), k)
            over_steps.add(writer, curve.method, _row(cell), round(token_steps_of(metrics, curve.at(k))))
    for one in results(metrics):
        if one.strategy.kind in ("answer", "search"):
            over_steps.add(writer, tag_name(one.strategy), _row(one.accuracy), round(one.token_steps))
    for step, value in enumerate(metrics["diversity"]["per_step"], start=1):
        if value is not None:
            add_scalar(writer, "over_latent_steps_set_smoothing_to_0/diversity", value, step)
    return {"rollouts k": over_k, "token steps per problem": over_steps}


def _row(cell: Cell) -> tuple[float, float, float]:
    return cell.value, *cell.bounds


class ShownRecords:
    """What TensorBoard shows of the records of a run, which are taken in one at a time: a few as text, and their scores."""

    def __init__(self) -> None:
        self.examples, self.scores = Examples(), ScoreSamples()

    def add(self, record: Record) -> None:
        """Takes one problem in."""
        self.examples.add(record)
        self.scores.add(record)

    def extend(self, later: ShownRecords) -> None:
        """Takes in the problems that follow."""
        self.examples.extend(later.examples)
        self.scores.extend(later.scores)


def shown_of(records: Iterable[Record] | ShownRecords) -> ShownRecords:
    """Of records, which are gone through once; what is shown already is returned as it is."""
    if isinstance(records, ShownRecords):
        return records
    shown = ShownRecords()
    for record in records:
        shown.add(record)
    return shown


def _add_records(writer: SummaryWriter, shown: ShownRecords) -> None:
    for number, (kind, text) in enumerate(shown.examples.texts(), start=1):
        writer.add_text(f"problems/{number}_{kind}", text)
    for step, found in enumerate((shown.scores.wrong, shown.scores.right)):
        if found:
            writer.add_histogram(SCORES, np.asarray(found), step)

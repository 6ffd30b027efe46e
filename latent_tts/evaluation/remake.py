"""Metrics of a run from its records, without a model: as they were, or with other aggregations, another answer rule, other k."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from latent_tts.aggregation import check_ks
from latent_tts.answers import AnswerRule
from latent_tts.errors import UserError
from latent_tts.evaluation.prediction_files import prediction_files
from latent_tts.evaluation.problem_values import choose
from latent_tts.evaluation.record_reading import RecordFiles
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.run_folder import METRICS_FILE, RUN_FILE, read_run
from latent_tts.evaluation.settings import Settings
from latent_tts.evaluation.strategies import Part, Strategy, make_aggregations, make_searches, of_search
from latent_tts.evaluation.summary import EvaluationMetrics


@dataclass(frozen=True)
class Reading:
    """How records are read; None takes what the run did.

    Attributes:
        aggregations: What is done with the rollouts.
        answer_rule: When an answer equals the gold one.
        ks: Numbers of rollouts at which curves are reported, and 1; the largest is the full budget.
    """

    aggregations: Sequence[Part] | None = None
    answer_rule: AnswerRule | None = None
    ks: Sequence[int] | None = None

    @property
    def changed(self) -> bool:
        """Whether anything may be other than in the run."""
        return self != AS_RUN


AS_RUN: Final = Reading()


class ReadRun:
    """An evaluation read back from its folder, finished or not.

    Args:
        folder: The run's folder.
        reading: How its records are read.

    Raises:
        UserError: The folder holds no evaluation, an aggregation needs scores that it has not, or a k is out of reach.
    """

    def __init__(self, folder: Path, reading: Reading = AS_RUN) -> None:
        self.folder = folder
        self.described = _described(folder)
        self.settings: Settings = self.described["settings"]
        self.own_rule: AnswerRule = self.settings["model.answer_rule"]
        self.answer_rule = reading.answer_rule or self.own_rule
        self._reading = reading
        self.empty_metrics()  # what cannot be is refused before anything is read

    def empty_metrics(self) -> EvaluationMetrics:
        """Metrics that have counted nothing."""
        try:
            return metrics_of_settings(self.settings, self._reading.aggregations, self._reading.ks)
        except UserError as error:
            raise UserError(f"{self.folder}: {error}") from error

    @property
    def strategies(self) -> list[Strategy]:
        """Those that answer a problem."""
        return self.empty_metrics().choosing(self.settings["model.num_rollouts"])

    def files(self) -> RecordFiles:
        """The run's records, at the sizes that their files have now."""
        return RecordFiles.of(prediction_files(self.folder))

    def records(self) -> Iterator[Record]:
        """The records one at a time, judged by the rule."""
        return self.judged(self.files().read())

    def __iter__(self) -> Iterator[Record]:
        return self.chosen(self.files().read())

    def chosen(self, records: Iterable[Record]) -> Iterator[Record]:
        """Records of the run as they are read: judged by the rule, with what these aggregations choose."""
        aggregations = self.empty_metrics().aggregations
        names = {part.name for part in aggregations}
        for record in self.judged(records):
            yield record if record.chosen.keys() == names else replace(record, chosen=choose(record, aggregations))

    def judged(self, records: Iterable[Record]) -> Iterator[Record]:
        """Records of the run, judged by the rule."""
        for record in records:
            yield record if self.answer_rule == self.own_rule else record.judged(record.gold, self.answer_rule)

    def metrics(
        self,
        among: Container[str] | None = None,
        see: Callable[[Record, dict[Strategy, float]], None] | None = None,
    ) -> dict[str, Any]:
        """The content of metrics.json.

        Args:
            among: Ids of the problems to count; None counts all.
            see: Is handed every record that is counted, with how good every strategy is on it.

        Raises:
            UserError: There is no record.
        """
        counted = (record for record in self.records() if among is None or record.problem_id in among)
        return self.content(self.empty_metrics().count_all(counted, see))

    def content(self, metrics: EvaluationMetrics) -> dict[str, Any]:
        """The content of metrics.json, from what has counted records of the run.

        Raises:
            UserError: It has counted none.
        """
        if not metrics.num_problems:
            raise UserError(f"{self.folder} holds no record yet: let the evaluation run first.")
        found = metrics.compute()
        evaluated = self._evaluated(found.pop("problems_fingerprint"), metrics)
        return {"evaluated": evaluated} | found | {"throughput": {"rollouts_per_second": earlier_speed(self.folder)}}

    def _evaluated(self, problems: str, metrics: EvaluationMetrics) -> dict[str, Any]:
        data = {key.removeprefix("data."): value for key, value in self.settings.items() if key.startswith("data.")}
        drawn = self.settings["model.num_rollouts"]
        fewer = {"rollouts_drawn": drawn} if metrics.num_rollouts != drawn else {}
        evaluated: dict[str, Any] = self.described["evaluated"]
        commit = evaluated.get("data") or {}  # of a hub set; its options are among the settings
        changed = {"answer_rule": self.answer_rule, "data": data | commit | {"fingerprint": problems}}
        return evaluated | changed | fewer


def remake_metrics(
    run: Path,
    aggregations: Sequence[Part] | None = None,
    answer_rule: AnswerRule | None = None,
    ks: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The content of metrics.json for the records of a run, finished or not; see `Reading` and `ReadRun`."""
    return ReadRun(run, Reading(aggregations, answer_rule, ks)).metrics()


def _described(folder: Path) -> dict[str, Any]:
    described = read_run(folder)
    if described is None:
        raise UserError(f"{folder} holds no {RUN_FILE}: name the folder of an evaluation.")
    if not isinstance(described.get("evaluated"), dict) or "model.num_rollouts" not in described["settings"]:
        raise UserError(f"{folder} is no evaluation: name the folder of one, with predictions/.")
    return described


def metrics_of_settings(
    settings: Settings, aggregations: Sequence[Part] | None = None, ks: Sequence[int] | None = None
) -> EvaluationMetrics:
    """Empty metrics for records of a run with these settings."""
    scored = settings["model.reward_model.fingerprint"] is not None
    parts = settings["model.aggregations"] if aggregations is None else aggregations
    searches = make_searches(settings["model.search"], scored)
    if ks is not None:
        check_ks(ks, settings["model.num_rollouts"])
        ks = sorted({1, *ks})  # a single rollout is what others are measured from
    return EvaluationMetrics(
        settings["model.num_rollouts"] if ks is None else ks[-1],
        settings["model.num_latents"],
        make_aggregations(parts, scored),
        [of_search(search) for search in searches],
        written="model.written.fingerprint" in settings,
        ks=ks,
    )


def earlier_speed(run: Path) -> float | None:
    """The throughput that a run's metrics.json holds, of the process that drew last; None where none was measured."""
    path = run / METRICS_FILE
    if not path.exists():
        return None
    speed: float | None = json.loads(path.read_text(encoding="utf-8"))["throughput"]["rollouts_per_second"]
    return speed

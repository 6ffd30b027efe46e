"""Metrics of a run from its records, without a model: as they were, or with other aggregations or another answer rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latent_tts.answers import AnswerRule
from latent_tts.errors import UserError
from latent_tts.evaluation.prediction_files import prediction_files, read_records
from latent_tts.evaluation.run_folder import METRICS_FILE, RUN_FILE, Settings, read_run
from latent_tts.evaluation.strategies import Part, make_aggregations, make_searches, of_search
from latent_tts.evaluation.summary import EvaluationMetrics


def remake_metrics(
    run: Path, aggregations: Sequence[Part] | None = None, answer_rule: AnswerRule | None = None
) -> dict[str, Any]:
    """The content of metrics.json for the records of a run, finished or not.

    Args:
        run: Its folder.
        aggregations: What is done with the rollouts; None takes what the run did.
        answer_rule: When an answer equals the gold one; None takes the run's.

    Raises:
        UserError: The folder holds no run or no record, or an aggregation needs scores that the run has not.
    """
    described = read_run(run)
    if described is None:
        raise UserError(f"{run} holds no {RUN_FILE}: name the folder of an evaluation.")
    settings = described["settings"]
    metrics = metrics_of_settings(settings, aggregations)
    own: AnswerRule = settings["model.answer_rule"]
    rule = answer_rule or own
    for record in read_records(prediction_files(run)):
        metrics.update(record if rule == own else record.judged(record.gold, rule))
    if not metrics.num_problems:
        raise UserError(f"{run} holds no record yet: let the evaluation run first.")
    found = metrics.compute()
    data = {key.removeprefix("data."): value for key, value in settings.items() if key.startswith("data.")}
    data["fingerprint"] = found.pop("problems_fingerprint")
    evaluated = described["evaluated"] | {"answer_rule": rule, "data": data}
    return {"evaluated": evaluated} | found | {"throughput": {"rollouts_per_second": earlier_speed(run)}}


def metrics_of_settings(settings: Settings, aggregations: Sequence[Part] | None = None) -> EvaluationMetrics:
    """Empty metrics for records of a run with these settings."""
    scored = settings["model.reward_model.fingerprint"] is not None
    parts = settings["model.aggregations"] if aggregations is None else aggregations
    searches = make_searches(settings["model.search"], scored)
    return EvaluationMetrics(
        settings["model.num_rollouts"],
        settings["model.num_latents"],
        make_aggregations(parts, scored),
        [of_search(search) for search in searches],
        written="model.written.fingerprint" in settings,
    )


def earlier_speed(run: Path) -> float | None:
    """The throughput that a run's metrics.json holds, of the process that drew last; None where none was measured."""
    path = run / METRICS_FILE
    if not path.exists():
        return None
    speed: float | None = json.loads(path.read_text(encoding="utf-8"))["throughput"]["rollouts_per_second"]
    return speed

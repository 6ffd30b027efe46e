"""Diagnoses: each sign is told where records show it, and not where they don't."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from latent_tts.aggregation import BestOfN, MajorityVoting
from latent_tts.evaluation import diagnoses
from latent_tts.evaluation.control_diagnoses import diagnose_runs
from latent_tts.evaluation.diagnoses import RULES, diagnose
from latent_tts.evaluation.record_table import table_of
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.figures import FIGURES
from latent_tts.evaluation.summary import EvaluationMetrics
from latent_tts.metrics.intervals import Interval
from tests.records import make_record

N = 16


def every_number(seed: int) -> int:
    return seed % (N + 1)


def telling(seed: int, i: int, right: bool) -> float:
    return 2.0 * right + ((7 * seed + 5 * i) % 11) / 10


def make_records(num_right=every_number, score=telling, count=200, **changes) -> list[Record]:
    """Problems with so many right rollouts each (the wrong ones each of another answer), a score a rollout, and other fields."""
    made = []
    for seed in range(count):
        plain = make_record(seed, N)
        rollouts = [
            replace(one, answer=1.0 if i < num_right(seed) else 5.0 + i, correct=i < num_right(seed), num_latents=1)
            for i, one in enumerate(plain.rollouts)
        ]
        scored = tuple(
            replace(one, step_scores=(score(seed, i, one.correct),), text=f"### {one.answer}")
            for i, one in enumerate(rollouts)
        )
        greedy = replace(plain.greedy, correct=num_right(seed) > N / 2)
        made.append(replace(plain, rollouts=scored, greedy=greedy, **changes))
    return made


def found(records, **changes) -> dict[str, diagnoses.Diagnosis]:
    metrics = EvaluationMetrics(N, 3, [MajorityVoting(), BestOfN()])
    for record in records:
        metrics.update(record)
    return {one.name: one for one in diagnose(metrics.compute() | changes, table_of(records))}


def test_a_run_that_works_has_no_diagnosis():
    assert found(make_records()) == {}


GREEDY = [replace(one, greedy=replace(one.greedy, correct=True)) for one in make_records()]
NOISE = make_records(score=lambda seed, i, right: random.Random(N * seed + i).random())


@pytest.mark.parametrize(
    ("name", "records", "changes", "told"),
    [
        ("rollouts are not finite", make_records(), {"nonfinite_rollouts": 3}, "3 of 3,200 rollouts"),
        ("many answers do not parse", make_records(), {"invalid_answer_rate": 0.0712}, "7.1 %"),
        ("rollouts do not differ", make_records(score=lambda *_: 0.5, diversity=(0.0, 1e-9)), {}, "in 6 % of the problems"),
        ("coverage is flat early", make_records(lambda seed: N * (seed % 2)), {}, "From 4 to 16 rollouts coverage rises by +0.0"),
        ("the greedy answer beats voting", GREEDY, {}, "+"),
        ("no aggregation is above voting", NOISE, {}, "best-of-N @ 16"),
        ("scores are constant", make_records(score=lambda *_: 0.25), {}, "All 3,200 rollouts have the score 0.25"),
        ("scores are saturated", make_records(score=lambda seed, i, right: 5.0 + right), {}, "100.0 % of the rollouts"),
        ("scores do not tell right from wrong", NOISE, {}, "chance is 50"),
    ],
)  # fmt: skip
def test_a_sign_is_told_with_its_number(name, records, changes, told):
    diagnosis = found(records, **changes)[name]
    assert told in diagnosis.sentence and diagnosis.advice.endswith(".")
    assert diagnosis.figure is None or diagnosis.figure in FIGURES


@pytest.mark.parametrize(
    ("name", "records", "changes"),
    [
        ("many answers do not parse", make_records(), {"invalid_answer_rate": 0.05}),
        (
            "rollouts do not differ",
            make_records(diversity=(0.0,)),
            {"evaluated": {"answer_sampler": {"temperature": 0.7}}},
        ),
        ("rollouts do not differ", make_records(diversity=(1e-3,)), {}),
        # 10 problems cannot exclude that coverage still rises by 2 points
        ("coverage is flat early", make_records(lambda seed: N * (seed % 2), count=10), {}),
        ("scores are saturated", make_records(score=lambda seed, i, right: 5.0 * (i % 2)), {}),
    ],
)
def test_what_is_within_its_bound_or_its_interval_is_not_told(name, records, changes):
    assert name not in found(records, **changes)


def test_a_gain_that_few_problems_cannot_show_says_how_many_would():
    """One problem of 20 is won by scores: 5 points, and an interval of +-1.96 sqrt(v / 22) about it, which is wider."""
    records = make_records(lambda seed: N if seed else N // 4, lambda seed, i, right: float(right) + i / 100, count=20)
    records[0] = replace(
        records[0], rollouts=tuple(one if one.correct else replace(one, answer=7.0) for one in records[0].rollouts)
    )
    told = found(records)
    assert {"too few problems to see the difference", "no aggregation is above voting"} <= set(told)
    assert "+5.0 (" in told["too few problems to see the difference"].sentence
    assert "too few problems to see the difference" not in found(make_records())


def test_without_records_or_scores_their_signs_are_left_out():
    metrics = EvaluationMetrics(N, 3, [MajorityVoting(), BestOfN()])
    for record in NOISE:
        metrics.update(record)
    told = {one.name for one in diagnose(metrics.compute())}
    assert not told & {"scores do not tell right from wrong", "coverage is flat early"}


def test_one_rollout_has_no_diagnosis_of_sampling():
    records = [make_record(seed, 1) for seed in range(30)]
    metrics = EvaluationMetrics(1, 3, [MajorityVoting(), BestOfN()])
    for record in records:
        metrics.update(record)
    names = {one.name for one in diagnose(metrics.compute(), records)}
    assert not names & {"rollouts do not differ", "coverage is flat early", "no aggregation is above voting"}


def test_every_rule_has_a_name_of_its_own():
    assert len({rule.__name__ for rule in RULES}) == len(RULES)


def run(control: str | None, low: float = 0.0, high: float = 0.0):
    return SimpleNamespace(
        name=f"run-{control}",
        metrics={"evaluated": {"latent_control": control}},
        full_differences={"single": Interval((low + high) / 2, low, high)} if control else {},
    )


def compared(*runs):
    return SimpleNamespace(runs=runs, baseline_run=runs[0])


def test_latents_matter_where_accuracy_falls_without_them():
    told = diagnose_runs(compared(run(None), run("zero", -0.3, -0.2), run("shuffle", -0.02, 0.03)))
    assert [one.name for one in told] == ["latents do not matter"]
    assert "shuffle: run-shuffle" in told[0].sentence and "+0.5 (-2.0 to +3.0)" in told[0].sentence
    # a control compared with a control says nothing
    assert diagnose_runs(compared(run("zero"), run("shuffle", -0.02, 0.03))) == []

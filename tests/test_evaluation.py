"""The numbers of an evaluation as a function of its records."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from statistics import mean

import pytest

from latent_tts.aggregation import AGGREGATIONS as EVERY
from latent_tts.aggregation import BestOfN, MajorityVoting, WeightedVoting, k_grid
from latent_tts.errors import UserError
from latent_tts.evaluation.problem_values import choose, curve_values, record_scores
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.strategies import of_search
from latent_tts.evaluation.summary import EvaluationMetrics
from latent_tts.search import ParticleFiltering
from tests.records import SEARCH, make_record

AGGREGATIONS = (MajorityVoting(), BestOfN(), WeightedVoting())
RECORDS = [make_record(seed, searches=(SEARCH,)) for seed in range(12)]


def summary(records, aggregations=AGGREGATIONS, num_rollouts=4, searches=(SEARCH,), **kwargs):
    metrics = EvaluationMetrics(num_rollouts, 3, aggregations, searches, **kwargs)
    for record in records:
        metrics.update(record)
    return metrics.compute()


def test_coverage_single_and_best_of_n_equal_a_loop_over_all_subsets():
    """Every k-subset of the 4 rollouts is listed: covered if any is right, best-of-N right if its best-scored one is."""
    found = summary(RECORDS)
    for k in (1, 2, 4):
        covered, best = [], []
        for record in RECORDS:
            subsets = list(combinations(record.rollouts, k))
            covered.append(mean(any(r.correct for r in subset) for subset in subsets))
            best.append(mean(max(subset, key=lambda r: sum(r.step_scores or ())).correct for subset in subsets))
        assert found["coverage"][str(k)] == pytest.approx(mean(covered), abs=1e-6)
        assert found["accuracy"]["best_of_n"][str(k)] == pytest.approx(mean(best), abs=1e-6)
    assert found["accuracy"]["single"] == found["coverage"]["1"] == found["accuracy"]["majority_voting"]["1"]
    assert found["accuracy"]["greedy"] == pytest.approx(0.5)
    assert found["accuracy"]["beam_search"] == {"2x2": pytest.approx(1 / 3, abs=1e-6)}


def test_rates_diversity_and_compute_are_plain_means():
    """Per problem 10 positions shared and 5 a rollout, for scores 9 and 3 more; a step that no pair of rollouts has is null."""
    found = summary(RECORDS)
    answers = [rollout.answer for record in RECORDS for rollout in record.rollouts]
    assert found["invalid_answer_rate"] == pytest.approx(answers.count(None) / len(answers), abs=1e-6)
    assert found["diversity"] == {"mean": 0.375, "per_step": [0.25, 0.5, None]}
    assert (
        found["token_steps"]["rollouts"] == found["token_steps"]["majority_voting"] == {"1": 15.0, "2": 20.0, "4": 30.0}
    )
    assert found["token_steps"]["best_of_n"] == {"1": 27.0, "2": 35.0, "4": 51.0}
    assert found["token_steps"]["greedy"] == 15.0 and found["token_steps"]["beam_search"] == {"2x2": 45.5}
    assert (found["num_problems"], found["num_rollouts"]) == (12, 4)


def test_head_room_is_the_share_of_the_way_from_a_single_rollout_to_coverage():
    found = summary(RECORDS)
    single, top = found["accuracy"]["single"], found["coverage"]["4"]
    for name in ("majority_voting", "best_of_n", "weighted_voting"):
        share = (found["accuracy"][name]["4"] - single) / (top - single)
        assert found["head_room_recovered"][name] == pytest.approx(share, abs=1e-4)
    assert "beam_search@2x2" in found["head_room_recovered"]


def test_the_order_of_the_records_changes_nothing():
    assert summary(RECORDS) == summary(RECORDS[::-1])


def test_records_read_back_from_json_give_the_same_numbers():
    lines = [json.dumps(record.to_json()) for record in RECORDS]
    assert summary([Record.from_json(json.loads(line)) for line in lines]) == summary(RECORDS)


def test_intervals_hold_their_values_and_differences_are_paired():
    found = summary(RECORDS)
    for name, (low, high) in found["confidence_interval"].items():
        method, _, k = name.partition("@")
        value = found["coverage"][k] if method == "coverage" else found["accuracy"][method]
        value = value[k] if isinstance(value, dict) else value
        assert low <= value <= high
    assert set(found["difference_to_majority_voting"]) == {
        "greedy", "single", "best_of_n@4", "weighted_voting@4", "beam_search@2x2",
    }  # fmt: skip
    gap = found["accuracy"]["best_of_n"]["4"] - found["accuracy"]["majority_voting"]["4"]
    assert found["difference_to_majority_voting"]["best_of_n@4"]["mean"] == pytest.approx(gap, abs=1e-5)


def test_one_rollout_without_scores_is_enough():
    records = [make_record(seed, num_rollouts=1, scored=False) for seed in range(3)]
    found = summary(records, [MajorityVoting()], num_rollouts=1, searches=())
    assert found["diversity"] == {"mean": None, "per_step": [None, None, None]}
    assert found["head_room_recovered"] == {"majority_voting": None}
    json.dumps(found, allow_nan=False)


def test_scores_of_rollouts_of_different_lengths_are_masked():
    record = make_record(0)
    first, second, *others = record.rollouts
    rows = (replace(first, step_scores=(2.0,)), replace(second, step_scores=(1.0, -1.0, 0.5)), *others)
    scores, mask = record_scores(replace(record, rollouts=rows))
    assert scores is not None and mask is not None
    assert scores[0].tolist() == [2.0, 0.0, 0.0] and mask[0].tolist() == [True, False, False] and mask[1].all()


def test_problems_counted_together_are_each_to_the_bit_what_they_are_alone():
    """Of several lengths, one without a finite rollout, and one without an answer."""
    records = [make_record(seed, 6, num_steps=1 + seed % 3) for seed in range(9)]
    lost = [replace(one, answer=None, correct=False, finite=False, step_scores=()) for one in records[4].rollouts]
    silent = [replace(one, answer=None, correct=False) for one in records[7].rollouts]
    records[4:8:3] = [replace(records[4], rollouts=tuple(lost)), replace(records[7], rollouts=tuple(silent))]
    parts, ks = [made() for made in EVERY.values()], [1, 2, 4, 6]
    for record, row in zip(records, curve_values(records, parts, ks), strict=True):
        answers, correct = [one.answer for one in record.rollouts], [one.correct for one in record.rollouts]
        alone = [part.expected_accuracy(answers, correct, *record_scores(record), ks) for part in parts]
        assert row == [value for values in alone for value in values]


def test_records_without_scores_are_refused_by_what_needs_them():
    with pytest.raises(UserError, match="best_of_n needs step scores"):
        summary([make_record(seed, scored=seed > 0) for seed in range(2)], searches=())


def test_chosen_answers_are_those_of_the_aggregations():
    record = make_record(1)
    best = max(record.rollouts, key=lambda rollout: sum(rollout.step_scores or ()))
    assert choose(record, AGGREGATIONS)["best_of_n"] == best.answer
    assert set(choose(record, AGGREGATIONS)) == {"majority_voting", "best_of_n", "weighted_voting"}


def test_a_sweep_of_a_search_over_the_values_of_k_keeps_head_room_and_smaller_budgets():
    """Particle filtering with 1, 2 and 4 particles has the budgets of the aggregations, and is none of them."""
    sweep = tuple(of_search(ParticleFiltering(num_particles)) for num_particles in k_grid(4))
    records = [make_record(seed, searches=sweep) for seed in range(12)]
    found = summary(records, searches=sweep)
    for budget, search in zip(("1", "2", "4"), sweep, strict=True):
        value = mean(record.search[search.key].correct for record in records)
        assert found["accuracy"]["particle_filtering"][budget] == pytest.approx(value, abs=1e-6)
        share = (value - found["accuracy"]["single"]) / (found["coverage"]["4"] - found["accuracy"]["single"])
        assert found["head_room_recovered"][f"particle_filtering@{budget}"] == pytest.approx(share, abs=1e-4)
        gap = value - found["accuracy"]["majority_voting"]["4"]
        difference = found["difference_to_majority_voting"][f"particle_filtering@{budget}"]
        assert difference["mean"] == pytest.approx(gap, abs=1e-5)
        assert found["token_steps"]["particle_filtering"][budget] == mean(
            r.search[search.key].token_steps for r in records
        )


def test_intervals_have_a_width_where_every_problem_agrees():
    right = [replace(make_record(seed), greedy=make_record(0).greedy) for seed in range(5)]
    low, high = summary(right, searches=())["confidence_interval"]["greedy"]
    assert low < 0.8 and high == 1.0


def test_rollouts_that_are_not_finite_are_counted_and_their_problem_goes_on():
    """They have no answer and no scores: never chosen, never voting, wrong, and invalid."""
    record = make_record(0)
    broken = tuple(
        replace(one, answer=None, correct=False, finite=False, step_scores=()) for one in record.rollouts[:2]
    )
    record = replace(record, rollouts=broken + record.rollouts[2:])
    found = summary([record], searches=())
    assert found["nonfinite_rollouts"] == 2 and summary(RECORDS)["nonfinite_rollouts"] == 0
    rest = max(record.rollouts[2:], key=lambda one: sum(one.step_scores or ()))
    assert choose(record, AGGREGATIONS)["best_of_n"] == rest.answer
    all_broken = replace(record, rollouts=broken)
    assert summary([all_broken], searches=(), num_rollouts=2)["accuracy"]["weighted_voting"]["2"] == 0.0


def test_the_fingerprint_of_the_problems_depends_on_each_of_them_and_not_on_their_order():
    fingerprint = summary(RECORDS)["problems_fingerprint"]
    assert fingerprint == summary(RECORDS[::-1])["problems_fingerprint"] and len(fingerprint) == 16
    corrected = [RECORDS[0].judged(2.0, "tolerance"), *RECORDS[1:]]
    assert (
        len({fingerprint, summary(RECORDS[1:])["problems_fingerprint"], summary(corrected)["problems_fingerprint"]})
        == 3
    )

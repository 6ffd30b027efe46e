"""Statistics over problems: rank correlations with difficulty taken away, and the risk of answers that are not withheld."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pytest
from scipy import stats

from latent_tts.evaluation.problem_statistics import (
    BY_AGREEMENT,
    GIVEN_GREEDY,
    GIVEN_OTHERS,
    PLAIN,
    AnswerSet,
    luck,
    near_miss,
    problem_statistics,
)
from latent_tts.evaluation.record_table import table_of
from latent_tts.metrics.rank_correlation import correlation_interval, partial_rank_correlation, rank_correlation
from latent_tts.metrics.selective_risk import area, risk_curve, risk_interval
from tests.records import make_record


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 50), rng.normal(size=50)
    assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def test_the_partial_rank_correlation_is_the_arithmetic_by_hand():
    """Ranks of x, y, z: 1 2 3 4 5, 2 1 4 3 5, 1 3 2 5 4. With r = 1 - 6 sum d^2 / (n (n^2 - 1)): sums of squares 4, 4 and 14, so
    r_xy = r_xz = 0.8 and r_yz = 0.3: (0.8 - 0.8 * 0.3) / sqrt((1 - 0.64) (1 - 0.09)) = 0.56 / sqrt(0.3276)."""
    x, y, z = [10.0, 20.0, 30.0, 40.0, 50.0], [2.0, 1.0, 4.0, 3.0, 5.0], [0.1, 0.3, 0.2, 0.5, 0.4]
    assert partial_rank_correlation(x, y, z) == pytest.approx(0.56 / math.sqrt(0.3276))


def test_the_partial_rank_correlation_is_that_of_what_regression_on_the_third_leaves():
    rng = np.random.default_rng(1)
    z = rng.integers(0, 4, 200)
    x, y = z + rng.normal(size=200), rng.integers(0, 3, 200) - z
    ranks = [stats.rankdata(values) for values in (x, y, z)]
    line = np.stack([np.ones(200), ranks[2]], axis=1)
    left = [one - line @ np.linalg.lstsq(line, one, rcond=None)[0] for one in ranks[:2]]
    assert partial_rank_correlation(x, y, z) == pytest.approx(np.corrcoef(*left)[0, 1])
    assert abs(partial_rank_correlation(x, y, z)) < 0.2 < abs(rank_correlation(x, y))


def test_a_third_that_does_not_vary_accounts_for_nothing_and_one_that_is_the_first_for_all():
    x, y = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]
    assert partial_rank_correlation(x, y, [1.0] * 4) == pytest.approx(rank_correlation(x, y))
    assert math.isnan(partial_rank_correlation(x, y, x))


def test_the_interval_of_a_correlation_holds_the_truth_and_is_fishers():
    """By hand for r = 0.5 of 103 problems: atanh 0.5 = 0.549306, sqrt(1.125 / 100) * 1.959964 = 0.207886."""
    found = correlation_interval(0.5, 103)
    assert found == pytest.approx((0.5, math.tanh(0.549306 - 0.207886), math.tanh(0.549306 + 0.207886)), abs=1e-5)
    assert correlation_interval(0.5, 104, num_given=1) == pytest.approx(found)
    assert correlation_interval(0.5, 4, 1)[1:] == (-1.0, 1.0) and math.isnan(correlation_interval(math.nan, 50).mean)
    rng, held = np.random.default_rng(2), 0
    truth = 6 / math.pi * math.asin(0.25)  # Spearman's of a bivariate normal of correlation 0.5
    for _ in range(400):
        x = rng.normal(size=60)
        found = correlation_interval(rank_correlation(x, 0.5 * x + math.sqrt(0.75) * rng.normal(size=60)), 60)
        held += found.low <= truth <= found.high
    assert held >= 0.92 * 400


def test_risk_is_the_mean_over_the_orders_of_problems_of_equal_confidence():
    confidence, right = [0.5, 1.0, 0.5, 0.25, 1.0], [1.0, 0.0, 0.0, 0.5, 1.0]
    curves = []
    for order in permutations(range(5)):
        if all(confidence[a] >= confidence[b] for a, b in pairwise(order)):
            wrong = [1 - right[i] for i in order]
            curves.append([sum(wrong[: i + 1]) / (i + 1) for i in range(5)])
    assert list(risk_curve(confidence, right)) == pytest.approx(list(np.mean(curves, axis=0)))
    assert area(risk_curve(confidence, right)) == pytest.approx(np.mean(curves))


def test_knowing_when_one_is_right_has_the_smallest_area_and_not_knowing_the_risk_itself():
    right = [1.0, 0.0, 1.0, 0.0]
    assert area(risk_curve(right, right)) == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)
    assert area(risk_curve([0.0] * 4, right)) == pytest.approx(0.5)


def test_the_risk_at_a_share_is_that_of_the_problems_that_are_surest():
    confidence, right = [0.9, 0.8, 0.7, 0.6], [1.0, 1.0, 0.0, 1.0]
    assert [risk_interval(confidence, right, share).mean for share in (0.25, 0.5, 0.75, 1.0)] == [0, 0, 1 / 3, 0.25]
    found = risk_interval(confidence, right, 0.51)  # to the next whole problem
    assert found.mean == pytest.approx(1 / 3) and found.low < 1 / 3 < found.high


def test_difficulty_is_the_greedy_answer_or_what_the_other_runs_reach():
    """Rows by hand from the records of three runs."""
    runs = [[replace(make_record(40 * run + i), diversity=(math.sin(i + run),)) for i in range(30)] for run in range(3)]
    shares = np.array([[np.mean([one.correct for one in record.rollouts]) for record in run] for run in runs])
    diversity = np.array([record.diversity[0] for record in runs[0]], dtype=float)
    greedy = [record.greedy.correct for record in runs[0]]
    tables = [table_of(run) for run in runs]
    found = problem_statistics(tables[0], tables[1:]).correlations["single rollout"]
    assert found[PLAIN].mean == pytest.approx(stats.spearmanr(diversity, shares[0]).statistic)
    assert found[GIVEN_GREEDY].mean == pytest.approx(partial_rank_correlation(diversity, shares[0], greedy))
    others = shares[1:].mean(axis=0)
    assert found[GIVEN_OTHERS].mean == pytest.approx(partial_rank_correlation(diversity, shares[0], others))
    assert GIVEN_OTHERS not in problem_statistics(tables[0]).correlations["coverage"]


def test_the_rounding_of_equal_latents_goes_with_nothing():
    records = [replace(make_record(i), diversity=(1e-8 * i,)) for i in range(20)]
    assert math.isnan(problem_statistics(table_of(records)).correlations["single rollout"][PLAIN].mean)


def test_luck_is_what_the_rollouts_of_another_problem_cover():
    """Of three problems: gold 1 stands among the answers of one of the two others, gold 2 of none, gold 3 of both."""
    answers = [
        AnswerSet(1.0, frozenset({1.0, 3.0})),
        AnswerSet(2.0, frozenset({1.0, 2.0, 3.0})),
        AnswerSet(3.0, frozenset()),
    ]
    assert luck(answers) == pytest.approx((1 + 0 + 2) / 6)
    record = make_record(3)
    assert AnswerSet.of(record).given == {one.answer for one in record.rollouts} - {None}
    found = problem_statistics(table_of([make_record(i) for i in range(3)]), answers=answers)
    assert found.luck == luck(answers) and found.different_answers == pytest.approx(5 / 3)
    assert problem_statistics(table_of([record])).to_json()["luck"] is None


def test_a_near_miss_is_a_number_one_or_two_beside_the_gold_answer():
    """Gold 5: of 3, 4, 6, 7 two are given; gold 2.5: of 0.5, 1.5, 3.5, 4.5 one is, and neither gold itself counts."""
    answers = [AnswerSet(5.0, frozenset({4.0, 5.0, 7.0, 8.0})), AnswerSet(2.5, frozenset({2.5, 3.5, 5.5}))]
    assert near_miss(answers) == pytest.approx((2 + 1) / 8)
    found = problem_statistics(table_of([make_record(i) for i in range(2)]), answers=answers)
    assert found.to_json()["near_miss"] == pytest.approx(3 / 8)
    assert problem_statistics(table_of([make_record(0)])).to_json()["near_miss"] is None


def test_what_is_unknown_is_null_and_one_rollout_has_nothing_to_withhold():
    single = problem_statistics(table_of([make_record(i, num_rollouts=1, scored=False) for i in range(5)]))
    assert single.to_json()["diversity_and"]["coverage"] == {PLAIN: None, GIVEN_GREEDY: None}
    assert single.num_problems == 0 and single.risks == {}
    risks = problem_statistics(table_of([make_record(i, scored=False) for i in range(5)])).to_json()["risk"]
    assert list(risks) == [BY_AGREEMENT] and len(risks[BY_AGREEMENT]["at"]) == 10

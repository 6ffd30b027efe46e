"""The figures of records: their numbers beside loops by hand, and nothing cut or covered at any height."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from latent_tts.aggregation import WeightedVoting
from latent_tts.evaluation.problem_values import record_scores
from latent_tts.evaluation.record_table import RecordTable, last_ranking, ranking, table_of
from latent_tts.evaluation.report.figures import FIGURES, figures
from latent_tts.evaluation.report.figures.invalid import invalid_figure
from latent_tts.evaluation.report.figures.reliability import calibration_error, score_bins
from latent_tts.evaluation.report.figures.success import success_bins
from latent_tts.metrics.ratios import ratio_interval
from tests.geometry import faults
from tests.metrics_json import make_metrics_json
from tests.records import make_record

OF_RECORDS = {"success", "reliability", "agreement"}


@pytest.fixture(scope="module")
def records():
    return [make_record(seed, num_rollouts=9) for seed in range(40)]


@pytest.fixture(scope="module")
def table(records) -> RecordTable:
    return table_of(record for record in records)


def at_height(share: float, num_rollouts: int) -> RecordTable:
    """40 problems in which this share of the rollouts is right, of the same answer, with diversities that vary."""
    made = []
    for seed in range(40):
        record = make_record(seed, num_rollouts)
        right = round(share * num_rollouts)
        rollouts = [replace(one, answer=float(i < right), correct=i < right) for i, one in enumerate(record.rollouts)]
        diversity = (0.1 + 0.01 * seed,) if num_rollouts > 1 else (None,)
        made.append(replace(record, rollouts=tuple(rollouts), diversity=diversity))
    return table_of(made)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_rollouts", "share"), [(1, 0.0), (1, 1.0), (16, 0.0), (16, 0.5), (16, 1.0), (1024, 0.0), (1024, 0.5)]
)
def test_nothing_is_cut_and_nothing_is_covered(num_rollouts, share):
    drawn = figures(make_metrics_json(num_rollouts, 0.5), at_height(share, num_rollouts))
    of_records = {name: drawn[name] for name in drawn.keys() & OF_RECORDS}
    assert set(of_records) == (OF_RECORDS if num_rollouts > 1 else {"reliability"})
    assert {name: found for name, figure in of_records.items() if (found := faults(figure))} == {}


@pytest.mark.parametrize(("num_rollouts", "invalid"), [(1, 1), (4, 1), (1024, 700)])
def test_rollouts_without_an_answer_are_shown_by_their_share_of_each_problem(num_rollouts, invalid):
    """Of 12 problems, 3 have so many rollouts without an answer: as many problems stand over that share, 9 over 0."""
    records = [make_record(seed, num_rollouts) for seed in range(12)]
    for i, record in enumerate(records):
        lost = invalid if i < 3 else 0
        answers = [None if n < lost else 1.0 for n in range(num_rollouts)]
        rollouts = tuple(replace(one, answer=a) for one, a in zip(record.rollouts, answers, strict=True))
        records[i] = replace(record, rollouts=rollouts)
    figure = invalid_figure(make_metrics_json(num_rollouts, 0.5), table_of(records))
    assert figure is not None and faults(figure) == []
    boxes = [bar.get_extents().transformed(figure.axes[0].transData.inverted()) for bar in figure.axes[0].patches]
    bars = {(box.x0 + box.x1) / 2: round(box.height) for box in boxes if box.height > 0.5}
    assert list(bars.values()) == [9, 3] and min(bars) == pytest.approx(0, abs=1e-6)
    assert max(bars) == pytest.approx(100 * invalid / num_rollouts, abs=100 / 16 / 2)
    assert invalid_figure(make_metrics_json(num_rollouts, 0.5), table_of(records[3:])) is None


def test_figures_of_records_are_left_out_without_records_and_without_scores():
    metrics = make_metrics_json(4, 0.5)
    assert not set(figures(metrics)) & OF_RECORDS and set(figures(metrics)) < set(FIGURES)
    assert "reliability" not in figures(metrics, [make_record(seed, scored=False) for seed in range(5)])


def test_the_table_holds_what_a_loop_over_records_finds(records, table):
    for i, record in enumerate(records):
        answers = [rollout.answer for rollout in record.rollouts if rollout.answer is not None]
        votes = {answer: answers.count(answer) for answer in answers}
        most = [answer for answer, count in votes.items() if count == max(votes.values())]
        assert table.num_right[i] == sum(rollout.correct for rollout in record.rollouts)
        assert table.vote_share[i] == pytest.approx(max(votes.values()) / 9)
        assert table.vote_right[i] == pytest.approx((1.0 in most) / len(most))
        assert table.diversity[i] == pytest.approx((0.25 + 0.5) / 2)
        last = [rollout.step_scores[-1] for rollout in record.rollouts]
        best = max(range(9), key=last.__getitem__)
        assert (table.best_score[i], table.best_right[i]) == (pytest.approx(last[best]), record.rollouts[best].correct)
        weights = {
            a: sum(np.exp(s) for s, r in zip(last, record.rollouts, strict=True) if r.answer == a) for a in votes
        }
        assert table.weighted_share[i] == pytest.approx(max(weights.values()) / sum(weights.values()))
        scores, mask = record_scores(record)
        marks, given = [one.correct for one in record.rollouts], [one.answer for one in record.rollouts]
        expected = WeightedVoting("last").expected_accuracy(given, marks, scores, mask, [9])
        assert [table.weighted_right[i]] == pytest.approx(expected)


def test_records_are_read_once_and_none_makes_an_empty_table(records):
    stream = iter(records)
    assert table_of(stream).num_problems == 40 and next(stream, None) is None
    empty = table_of([])
    assert empty.num_problems == 0 and not empty.scored and table_of(empty) is empty


def test_problems_of_few_steps_and_of_many_stand_in_one_table():
    """Each row is what it is in a table of its own, with no pairs at the steps it has not; several portions of records."""
    records = [make_record(seed, 5, num_steps=3 if seed >= 40 else 1) for seed in range(80)]
    table = table_of(records)
    for i, alone in enumerate(table_of([record]) for record in records):
        steps = alone.pairs.shape[1]
        assert table.pairs[i, :steps].tolist() == alone.pairs[0].tolist() and not table.pairs[i, steps:].any()
        assert table.score[table.problem == i].tolist() == alone.score.tolist()
        assert table.vote_share[i] == alone.vote_share[0]


def test_pairs_are_those_of_a_loop_over_all_pairs(records, table):
    won, pairs = np.zeros(3), np.zeros(3)
    for record in records:
        for a in record.rollouts:
            for b in record.rollouts:
                for t in range(min(a.num_latents, b.num_latents)):
                    if a.correct and not b.correct:
                        won[t] += (a.step_scores[t] > b.step_scores[t]) + (a.step_scores[t] == b.step_scores[t]) / 2
                        pairs[t] += 1
    assert [ranking(table, t).mean for t in range(3)] == pytest.approx(list(won / pairs))
    assert ranking(table).mean == pytest.approx(won.sum() / pairs.sum())


def test_the_last_scores_are_ranked_whatever_the_lengths(records, table):
    pairs = [
        (a.step_scores[-1], b.step_scores[-1])
        for record in records
        for a in record.rollouts
        for b in record.rollouts
        if a.correct and not b.correct
    ]
    assert last_ranking(table).mean == pytest.approx(np.mean([a > b for a, b in pairs]))


def test_bins_of_scores_are_those_of_a_loop(records, table):
    rollouts = sorted((one for record in records for one in record.rollouts), key=lambda one: one.step_scores[-1])
    error = 0.0
    for i, found in enumerate(score_bins(table)):
        part = rollouts[36 * i : 36 * (i + 1)]  # 360 in tenths
        assert found.count == 36 and found.score == pytest.approx(np.mean([one.step_scores[-1] for one in part]))
        assert found.right.mean == pytest.approx(np.mean([one.correct for one in part]))
        chance = np.mean([1 / (1 + np.exp(-one.step_scores[-1])) for one in part])
        error += 36 * abs(chance - np.mean([one.correct for one in part])) / 360
    assert calibration_error(score_bins(table)) == pytest.approx(error, abs=1e-6)


def test_bins_of_success_are_equal_in_number_and_in_order_of_diversity():
    diversity, success = np.array([0.4, 0.1, 0.3, 0.2, 0.5]), np.array([0.0, 1.0, 0.5, 1.0, 0.0])
    found = success_bins(diversity, success, 2)
    assert [one.count for one in found] == [3, 2]
    assert [one.x for one in found] == pytest.approx([0.2, 0.45])
    assert [one.success.value for one in found] == pytest.approx([2.5 / 3, 0.0])
    assert all(one.success.bounds[0] <= one.success.value <= one.success.bounds[1] for one in found)


def test_the_interval_of_a_ratio_is_as_wide_as_a_bootstrap_over_problems():
    rng = np.random.default_rng(1)
    whole = rng.integers(1, 20, 300)
    part = rng.binomial(whole, rng.beta(1, 1, 300))
    draws = rng.integers(0, 300, (4000, 300))
    low, high = np.percentile(part[draws].sum(1) / whole[draws].sum(1), [2.5, 97.5])
    found = ratio_interval(part, whole)
    assert found.mean == pytest.approx(part.sum() / whole.sum())
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.01)
    binary = ratio_interval([0.0] * 50, [1.0] * 50)
    assert binary.mean == 0.0 and binary.low == 0.0 and 0.02 < binary.high < 0.1
    assert np.isnan(ratio_interval([0.0], [0.0]).mean)

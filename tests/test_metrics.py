"""Metrics against loops written out by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from latent_tts.aggregation import MajorityVoting, k_grid
from latent_tts.errors import UserError
from latent_tts.metrics import (
    Accuracy,
    Coverage,
    Diversity,
    InvalidAnswerRate,
    MeanCost,
    PairedDifference,
    PairwiseRankingAccuracy,
    RecallAt1,
    ScoreCalibration,
    StepScoreCorrelation,
    coverage_at,
    head_room_recovered,
    step_diversity,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def scored_problems(seed=0, num_problems=6, num_rollouts=7, num_steps=4):
    """Scores (rounded, so that some tie), values, correctness and a mask of ragged lengths from 1 to T."""
    r = rng(seed)
    scores = torch.from_numpy(r.normal(size=(num_problems, num_rollouts, num_steps)).round(1) * 2)
    values = torch.from_numpy(r.random((num_problems, num_rollouts, num_steps)).round(2))
    correct = torch.from_numpy(r.random((num_problems, num_rollouts)) < 0.4)
    lengths = torch.from_numpy(r.integers(1, num_steps + 1, (num_problems, num_rollouts, 1)))
    return scores, values, correct, torch.arange(num_steps) < lengths


# --- coverage ---------------------------------------------------------------------------------------------------------


def test_coverage_equals_the_share_of_subsets_with_a_right_rollout():
    correct = torch.from_numpy(rng().random((10, 7)) < 0.3)
    expected = [
        [sum(map(any, itertools.combinations(row, k))) / math.comb(7, k) for k in range(1, 8)]
        for row in correct.tolist()
    ]
    assert torch.allclose(coverage_at(correct, range(1, 8)), torch.tensor(expected, dtype=torch.float64), atol=1e-14)


def test_coverage_of_1024_rollouts_equals_exact_integers():
    correct = torch.zeros(4, 1024, dtype=torch.bool)
    for row, right in zip(correct, (1, 30, 700, 1024), strict=True):
        row[:right] = True
    for k in k_grid(1024):
        exact = [1 - math.comb(1024 - c, k) / math.comb(1024, k) for c in (1, 30, 700, 1024)]
        assert coverage_at(correct, [k])[:, 0].tolist() == pytest.approx(exact, abs=1e-12)


def test_coverage_rises_with_k_from_the_share_right_to_any_right():
    correct = torch.from_numpy(rng(1).random((50, 20)) < 0.1)
    metric = Coverage(range(1, 21))
    metric.update(correct[:13])
    metric.update(correct[13:])
    curve = [interval.mean for interval in metric.compute().values()]
    assert all(a <= b + 1e-15 for a, b in itertools.pairwise(curve))
    assert curve[0] == pytest.approx(correct.double().mean().item())
    assert curve[-1] == pytest.approx(correct.any(1).double().mean().item())


def test_coverage_does_not_depend_on_the_order_of_the_rollouts_or_problems():
    correct = torch.from_numpy(rng(2).random((9, 8)) < 0.3)
    shuffled = correct[torch.randperm(9, generator=torch.Generator().manual_seed(0))].flip(1)
    assert torch.allclose(coverage_at(correct, [1, 3, 8]).sum(0), coverage_at(shuffled, [1, 3, 8]).sum(0))


def test_coverage_of_one_rollout_is_its_correctness_and_larger_k_is_refused():
    assert coverage_at(torch.tensor([[True], [False]]), [1]).tolist() == [[1.0], [0.0]]
    with pytest.raises(UserError, match="k = 2 is out of reach with 1 rollouts"):
        Coverage([1, 2]).update(torch.tensor([[True]]))


# --- accuracy, invalid answers, head-room -----------------------------------------------------------------------------


def test_accuracy_is_the_mean_of_expected_accuracies_over_problems():
    ks = [1, 2, 5]
    answers: list[list[float | None]] = [[0.0, 1.0, 1.0, None, 0.0], [2.0] * 5, [0.0] * 5, [None] * 5]
    rows = [MajorityVoting().expected_accuracy(a, [x == 0.0 for x in a], None, None, ks) for a in answers]
    metric = Accuracy(ks)
    metric.update(torch.tensor(rows[:1], dtype=torch.float64))
    metric.update(torch.tensor(rows[1:], dtype=torch.float64))
    found = {k: interval.mean for k, interval in metric.compute().items()}
    assert found == {k: pytest.approx(sum(row[i] for row in rows) / 4) for i, k in enumerate(ks)}
    assert metric.so_far() == metric.compute()
    with pytest.raises(UserError, match=r"\(problems, 3\)"):
        metric.update(torch.zeros(2, 4))
    with pytest.raises(UserError, match="not finite"):
        metric.update(torch.full((1, 3), math.nan))
    with pytest.raises(UserError, match="repeat: a, a"):
        Accuracy(["a", "a"])


def test_differences_are_paired_with_the_baseline_of_the_same_problem():
    values = torch.from_numpy(rng(5).random((30, 2)))
    baseline = torch.from_numpy(rng(6).random(30))
    metric = PairedDifference(["a", "b"])
    metric.update(values[:11], baseline[:11])
    metric.update(values[11:], baseline[11:])
    found = metric.compute()
    for i, name in enumerate("ab"):
        assert found[name].mean == pytest.approx(float((values[:, i] - baseline).mean()))
        assert found[name].low < found[name].mean < found[name].high


def test_pairing_makes_the_interval_of_a_difference_narrow():
    """b is right wherever a is, and for one problem in ten more; c is right as often as a, elsewhere."""
    r = rng(7)
    a = r.random(300) < 0.3
    values = torch.from_numpy(np.stack([a | (r.random(300) < 0.1), r.random(300) < 0.3], 1).astype(float))
    metric = PairedDifference(["b", "c"])
    metric.update(values, torch.from_numpy(a.astype(float)))
    found = metric.compute()
    assert found["b"].high - found["b"].low < 0.75 * (found["c"].high - found["c"].low) and found["b"].low > 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_means_before_the_first_problem_are_nan():
    assert math.isnan(Accuracy(["a"]).compute()["a"].mean) and math.isnan(MeanCost(["a"]).compute()["a"])


def test_invalid_answers_are_counted_over_all_rollouts():
    metric = InvalidAnswerRate()
    metric.update([[None, 1.0], [0.0, 0.0]])
    metric.update([[None, None]])
    assert metric.compute().item() == 0.5


def test_head_room_is_the_share_of_what_coverage_offers():
    assert head_room_recovered(0.3, 0.2, 0.7) == pytest.approx(0.2)
    assert head_room_recovered(0.1, 0.2, 0.7) == pytest.approx(-0.2)
    assert head_room_recovered(0.2, 0.2, 0.2) is None


# --- diversity --------------------------------------------------------------------------------------------------------


def pairwise_diversity(latents, lengths):
    """1 - cos over all pairs of rollouts that have the step, by torch's own cosine."""
    steps = []
    for t in range(latents.shape[1]):
        rows = [latents[n, t].double() for n in range(len(latents)) if lengths[n] > t]
        pairs = [1 - torch.cosine_similarity(a, b, dim=0).item() for a, b in itertools.combinations(rows, 2)]
        steps.append(sum(pairs) / len(pairs) if pairs else math.nan)
    return steps


def test_diversity_equals_the_loop_over_pairs():
    latents = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    latents[2, 1] = 0  # a latent of norm 0 has cosine 0 with all
    lengths = torch.tensor([5, 3, 2, 4, 3, 1])
    padded = torch.where(torch.arange(5)[:, None] < lengths[:, None, None], latents, 0)
    expected = pairwise_diversity(latents, lengths)
    assert step_diversity(padded, lengths).tolist() == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert math.isnan(expected[4])


def test_diversity_of_equal_rollouts_is_zero_and_of_nearly_equal_ones_precise():
    latents = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0)).double().expand(8, 3, 64)
    assert step_diversity(latents).abs().max() < 1e-30
    near = latents + 1e-6 * torch.randn(8, 3, 64, generator=torch.Generator().manual_seed(1)).double()
    assert step_diversity(near).tolist() == pytest.approx(pairwise_diversity(near, [3] * 8), rel=1e-3)


def test_diversity_of_one_rollout_is_undefined_and_counts_nothing():
    metric = Diversity(3)
    metric.update(step_diversity(torch.ones(1, 3, 4))[None])
    assert metric.compute()["mean"].isnan()
    assert metric.compute()["per_step"].isnan().all()


def test_diversity_averages_each_step_over_the_problems_that_have_it():
    nan = math.nan
    metric = Diversity(3)
    metric.update(torch.tensor([[0.2, 0.4]]))
    metric.update(torch.tensor([[0.6, nan, nan], [nan, nan, nan], [0.1, 0.2, 0.9]]))
    result = metric.compute()
    assert result["per_step"].tolist() == pytest.approx([0.3, 0.3, 0.9], abs=1e-7)
    assert result["mean"].item() == pytest.approx((0.3 + 0.6 + 0.4) / 3, abs=1e-7)


# --- reward-model validation ------------------------------------------------------------------------------------------


def test_recall_at_1_is_the_correctness_of_the_best_scored_rollout():
    scores, _, correct, mask = scored_problems()
    rows = correct.tolist()
    answers = [[0.0 if c else (None if i % 3 else 1.0) for i, c in enumerate(row)] for row in rows]
    metric = RecallAt1()
    metric.update(scores[:2], correct[:2], mask[:2], answers[:2])
    metric.update(scores[2:], correct[2:], mask[2:], answers[2:])
    sums = (scores * mask).sum(2).tolist()
    recall = [row[s.index(max(s))] for s, row in zip(sums, rows, strict=True)]
    voting = [MajorityVoting().expected_accuracy(a, c, None, None, [7])[0] for a, c in zip(answers, rows, strict=True)]
    result = {name: value.item() for name, value in metric.compute().items()}
    assert result["recall_at_1"] == pytest.approx(sum(recall) / 6)
    assert result["chance"] == pytest.approx(correct.double().mean().item())
    assert result["coverage"] == pytest.approx(correct.any(1).double().mean().item())
    assert result["voting"] == pytest.approx(sum(voting) / 6)


def test_recall_at_1_without_answers_has_no_voting():
    metric = RecallAt1("last")
    metric.update(torch.tensor([[[0.0, 5.0], [9.0, 1.0]]]), torch.tensor([[True, False]]))
    assert metric.compute()["recall_at_1"] == 1.0
    assert metric.compute()["voting"].isnan()


def test_pairwise_accuracy_equals_the_loop_over_pairs_with_ties_half():
    scores, _, correct, mask = scored_problems(1)
    metric = PairwiseRankingAccuracy(6)
    metric.update(scores[:4], correct[:4], mask[:4])
    metric.update(scores[4:], correct[4:], mask[4:])
    won, pairs = [0.0] * 6, [0] * 6
    for p, a, b, t in itertools.product(range(6), range(7), range(7), range(4)):
        if correct[p, a] and not correct[p, b] and mask[p, a, t] and mask[p, b, t]:
            won[t] += float(scores[p, a, t] > scores[p, b, t]) + 0.5 * float(scores[p, a, t] == scores[p, b, t])
            pairs[t] += 1
    result = metric.compute()
    assert result["per_step"][:4].tolist() == pytest.approx([w / n for w, n in zip(won[:4], pairs[:4], strict=True)])
    assert result["per_step"][4:].isnan().all()
    assert result["mean"].item() == pytest.approx(sum(won) / sum(pairs))


def test_pairwise_accuracy_of_constant_scores_is_one_half():
    metric = PairwiseRankingAccuracy(2)
    metric.update(torch.zeros(1, 4, 2), torch.tensor([[True, False, False, True]]))
    assert metric.compute()["per_step"].tolist() == [0.5, 0.5]


def test_calibration_error_equals_a_loop_over_bins():
    scores, values, _, mask = scored_problems(2)
    metric = ScoreCalibration(5)
    metric.update(scores[:1], values[:1], mask[:1])
    metric.update(scores[1:], values[1:], mask[1:])
    bins: list[list[Any]] = [[] for _ in range(5)]
    for score, value in zip(scores[mask].tolist(), values[mask].tolist(), strict=True):
        p = 1 / (1 + math.exp(-score))
        bins[min(int(p * 5), 4)].append((p, value))
    gaps = [abs(sum(p for p, _ in b) - sum(v for _, v in b)) for b in bins]
    result = metric.compute()
    assert result["error"].item() == pytest.approx(sum(gaps) / int(mask.sum()))
    assert result["count"].tolist() == [len(b) for b in bins]
    assert result["observed"].tolist() == pytest.approx([np.mean([v for _, v in b]) if b else math.nan for b in bins])


def test_scores_that_are_the_logits_of_the_values_are_calibrated():
    values = torch.linspace(0.01, 0.99, 60, dtype=torch.float64).reshape(2, 5, 6)
    metric = ScoreCalibration()
    metric.update(values.logit(), values)
    assert metric.compute()["error"].item() == pytest.approx(0, abs=1e-12)


def test_step_correlation_equals_numpy_over_all_rollouts_and_within_problems():
    scores, values, _, mask = scored_problems(3, num_problems=8)
    metric = StepScoreCorrelation(5)
    metric.update(scores[:3], values[:3], mask[:3])
    metric.update(scores[3:], values[3:], mask[3:])
    result = metric.compute()
    for t in range(4):
        rows = [(scores[p, mask[p, :, t], t].numpy(), values[p, mask[p, :, t], t].numpy()) for p in range(8)]
        pooled = np.corrcoef(np.concatenate([x for x, _ in rows]), np.concatenate([y for _, y in rows]))[0, 1]
        centred = [(x - x.mean(), y - y.mean()) for x, y in rows if len(x)]
        within = np.corrcoef(np.concatenate([x for x, _ in centred]), np.concatenate([y for _, y in centred]))[0, 1]
        assert result["per_step"][t].item() == pytest.approx(pooled)
        assert result["within"][t].item() == pytest.approx(within)
    assert result["per_step"][4].isnan()
    assert result["within"][4].isnan()


def test_correlation_with_constant_values_is_undefined():
    scores, _, _, mask = scored_problems(3)
    metric = StepScoreCorrelation(4)
    metric.update(scores, torch.full_like(scores, 0.3), mask)
    assert metric.compute()["per_step"].isnan().all()
    assert metric.compute()["within"].isnan().all()


def test_within_problem_correlation_ignores_how_hard_a_problem_is():
    scores, values, _, mask = scored_problems(4)
    plain, shifted = StepScoreCorrelation(4), StepScoreCorrelation(4)
    offset = torch.arange(6.0)[:, None, None] * 10
    plain.update(scores, values, mask)
    shifted.update(scores + offset, values + offset, mask)
    assert torch.allclose(plain.compute()["within"], shifted.compute()["within"], atol=1e-9)
    assert (shifted.compute()["per_step"] > 0.98).all()


@pytest.mark.parametrize("make", [PairwiseRankingAccuracy, StepScoreCorrelation, lambda steps: ScoreCalibration()])
def test_masked_steps_and_their_contents_change_nothing(make):
    scores, values, correct, mask = scored_problems(5)
    target = correct if make is PairwiseRankingAccuracy else values
    padded_target = target if make is PairwiseRankingAccuracy else torch.nn.functional.pad(target, (0, 2), value=0.7)
    plain, padded = make(6), make(6)
    plain.update(scores, target, mask)
    dirty = torch.where(torch.nn.functional.pad(mask, (0, 2)), torch.nn.functional.pad(scores, (0, 2)), 1e9)
    padded.update(dirty, padded_target, torch.nn.functional.pad(mask, (0, 2)))
    for name, value in plain.compute().items():
        assert torch.equal(value.nan_to_num(-9), padded.compute()[name].nan_to_num(-9))


def test_shapes_that_do_not_fit_are_refused_in_a_sentence():
    scores = torch.zeros(2, 3, 4)
    with pytest.raises(UserError, match="at most 3 steps"):
        PairwiseRankingAccuracy(3).update(scores, torch.zeros(2, 3))
    with pytest.raises(UserError, match=r"these scores need \(2, 3\)"):
        RecallAt1().update(scores, torch.zeros(2, 4))
    with pytest.raises(UserError, match="give one each"):
        StepScoreCorrelation(4).update(scores, torch.zeros(2, 3, 1))
    with pytest.raises(UserError, match="their mask has shape"):
        ScoreCalibration().update(scores, scores, torch.ones(2, 3))
    with pytest.raises(UserError, match="rollouts, steps, width"):
        step_diversity(torch.zeros(3, 4))


def test_states_keep_their_size_and_64_bits_whatever_is_added():
    scores, values, correct, mask = scored_problems()
    metrics = [(PairwiseRankingAccuracy(4), correct), (StepScoreCorrelation(4), values), (ScoreCalibration(), values)]
    for metric, target in metrics:
        before = {name: state.shape for name, state in metric.metric_state.items()}
        for _ in range(3):
            metric.update(scores.float(), target, mask)
        assert {name: state.shape for name, state in metric.metric_state.items()} == before
        assert all(state.dtype in (torch.float64, torch.int64) for state in metric.metric_state.values())

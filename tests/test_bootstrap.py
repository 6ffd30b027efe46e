"""The Poisson bootstrap: fixed draws, order-invariance, and agreement with the textbook bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latent_tts.errors import UserError
from latent_tts.metrics import BootstrapIntervals, Interval, poisson_weights

FIXED = [0, 2, 1, 1, 0, 0, 0, 4, 3, 2, 1, 0]


def values_of(num_problems, seed=0):
    """Two correlated 0/1 outcomes a problem (b is right wherever a is, and sometimes more), and a third at random."""
    rng = np.random.default_rng(seed)
    a = rng.random(num_problems) < 0.3
    b = a | (rng.random(num_problems) < 0.1)
    return torch.from_numpy(np.stack([a, b, rng.random(num_problems) < 0.3], 1).astype(float))


def bootstrap(values, ids=None, **options):
    metric = BootstrapIntervals(["a", "b", "c"], **options)
    metric.update([f"p{i}" for i in range(len(values))] if ids is None else ids, values)
    return metric.compute()


def test_weights_are_fixed_by_the_problem_id():
    assert poisson_weights("0123456789abcdef", 12).tolist() == FIXED
    assert poisson_weights("0123456789abcdef", 1000)[:12].tolist() == FIXED
    assert poisson_weights("0123456789abcdee", 12).tolist() != FIXED
    assert poisson_weights("0123456789abcdef", 12, seed=1).tolist() != FIXED


def test_weights_are_poisson_with_mean_one_and_unrelated_between_problems():
    weights = np.stack([poisson_weights(str(i), 2000) for i in range(200)])
    share = np.bincount(weights.ravel(), minlength=6)[:6] / weights.size
    expected = [math.exp(-1) / math.factorial(i) for i in range(6)]
    assert share == pytest.approx(expected, abs=0.004)  # 5 standard errors: 5 * 0.48 / sqrt(400 000)
    correlation = np.corrcoef(weights)[np.triu_indices(200, 1)]
    assert abs(correlation.mean()) < 0.001
    assert abs(correlation).max() < 0.12


def test_replicates_equal_weighted_means_written_out():
    values = values_of(30)
    result = bootstrap(values, num_replicates=50)
    weights = np.stack([poisson_weights(f"p{i}", 50) for i in range(30)])
    for r in range(50):
        expected = (weights[:, r, None] * values.numpy()).sum(0) / weights[:, r].sum()
        assert result.replicates[r] == pytest.approx(expected)
    differences = result.replicates[:, 1] - result.replicates[:, 0]
    interval = result.difference("b", "a", level=0.9)
    assert interval.mean == pytest.approx((values[:, 1] - values[:, 0]).mean().item())
    assert (interval.low, interval.high) == tuple(pytest.approx(q) for q in np.quantile(differences, [0.05, 0.95]))


def test_neither_the_order_nor_the_batches_of_problems_matter():
    values, ids = values_of(40), [f"p{i}" for i in range(40)]
    once = bootstrap(values, ids)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    metric = BootstrapIntervals(["a", "b", "c"])
    for batch in (order[:7], order[7:8], order[8:]):
        metric.update([ids[i] for i in batch], values[batch])
    assert np.allclose(metric.compute().replicates, once.replicates, atol=1e-12)


def test_the_interval_is_that_of_the_textbook_bootstrap():
    """Resampling problems with replacement gives nearly the same percentiles at 500 problems."""
    values = values_of(500).numpy()
    rng = np.random.default_rng(1)
    resampled = np.stack([values[rng.integers(0, 500, 500)].mean(0) for _ in range(4000)])
    interval = bootstrap(torch.from_numpy(values), num_replicates=4000).interval("a")
    assert (interval.low, interval.high) == pytest.approx(np.quantile(resampled[:, 0], [0.025, 0.975]), abs=0.006)


def test_pairing_makes_the_difference_of_correlated_values_narrow():
    result = bootstrap(values_of(300))
    paired, unpaired = result.difference("b", "a"), result.difference("b", "c")
    assert paired.high - paired.low < 0.75 * (unpaired.high - unpaired.low)
    assert paired.excludes_zero()
    assert paired.low > 0
    same = result.difference("a", "a")
    assert same == Interval(0.0, 0.0, 0.0)
    assert not same.excludes_zero()


def test_head_room_interval_is_read_from_the_same_replicates():
    result = bootstrap(values_of(300))
    share = result.head_room("a", single="c", coverage="b")
    assert share is not None
    assert share.low <= share.mean <= share.high
    assert result.head_room("a", single="b", coverage="a") is None


def test_one_problem_gives_its_own_value_as_the_interval():
    assert bootstrap(torch.tensor([[1.0, 0.0, 1.0]])).interval("a") == Interval(1.0, 1.0, 1.0)


def test_bad_input_is_refused_in_a_sentence():
    metric = BootstrapIntervals(["a", "b", "c"])
    with pytest.raises(UserError, match=r"they must be \(2, 3\)"):
        metric.update(["p", "q"], torch.zeros(2, 2))
    with pytest.raises(UserError, match="not finite"):
        metric.update(["p"], torch.tensor([[1.0, math.nan, 0.0]]))
    with pytest.raises(UserError, match="'d' has no bootstrap values"):
        bootstrap(values_of(3)).interval("d")
    with pytest.raises(UserError, match="level of an interval is 95"):
        bootstrap(values_of(3)).interval("a", level=95)
    with pytest.raises(UserError, match="names repeat"):
        BootstrapIntervals(["a", "a"])

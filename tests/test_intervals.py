"""How often the intervals hold the truth, simulated; and their closed forms against published numbers."""

from __future__ import annotations

import numpy as np
import pytest

from latent_tts.metrics.intervals import difference_bounds, effective_problems, share_bounds

LEAST = 0.93
NUM_RUNS = 4000  # a standard error of 0.004 at 93 %
SIZES = [5, 20, 100, 1000]
SHARES = [0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98, 1.0]


def covered(values: np.ndarray, truth: float, bounds) -> float:
    """The share of simulated runs, (runs, problems), whose interval holds the truth."""
    low, high = bounds(values.mean(1), np.square(values).mean(1), values.shape[1])
    return float(((low <= truth + 1e-12) & (truth - 1e-12 <= high)).mean())


@pytest.mark.parametrize("size", SIZES)
def test_intervals_of_shares_hold_the_truth(size):
    """One answer a problem: right or wrong."""
    rng = np.random.default_rng(size)
    for share in SHARES:
        assert covered(rng.random((NUM_RUNS, size)) < share, share, share_bounds) >= LEAST, share


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spread", [0.05, 0.2, 0.5, 2.0, 10.0])
@pytest.mark.parametrize("num_rollouts", [4, 64])
def test_intervals_of_means_over_rollouts_hold_the_truth(size, spread, num_rollouts):
    """The chance of a problem is drawn from a beta distribution: from most problems easy or hopeless to all alike."""
    rng = np.random.default_rng([size, int(100 * spread), num_rollouts])
    for share in (0.005, 0.02, 0.1, 0.5):
        chances = rng.beta(spread * share, spread * (1 - share), (max(800, NUM_RUNS * 5 // size), size))
        values = rng.binomial(num_rollouts, chances) / num_rollouts
        assert covered(values, share, share_bounds) >= LEAST, share
        assert covered(1 - values, 1 - share, share_bounds) >= LEAST, 1 - share


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("level", [0.0, 0.1, 0.5])
def test_intervals_hold_the_truth_where_a_rare_problem_is_unlike_all_others(size, level):
    """Where none of them is drawn, all problems agree."""
    rng = np.random.default_rng([size, int(10 * level)])
    for rare in (0.2 / size, 1 / size, 3 / size):
        values = np.where(rng.random((NUM_RUNS, size)) < rare, 1.0, level)
        assert covered(values, rare + (1 - rare) * level, share_bounds) >= LEAST, rare
        gains = np.where(rng.random((NUM_RUNS, size)) < rare, 1.0, level / 10)
        assert covered(gains, rare + (1 - rare) * level / 10, difference_bounds) >= LEAST, rare


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("won", "lost"),
    [(0, 0), (0.02, 0), (0.02, 0.02), (0.1, 0), (0.1, 0.1), (0.3, 0.1), (0.5, 0.1), (0.5, 0.5), (0.9, 0), (1, 0)],
)
def test_intervals_of_paired_differences_hold_the_truth(size, won, lost):
    """A pair is won, lost or even; and with a gain of any size, as expected accuracies differ."""
    rng = np.random.default_rng([size, int(100 * won), int(100 * lost)])
    drawn = rng.random((NUM_RUNS, size))
    pairs = (drawn < won).astype(float) - ((drawn >= won) & (drawn < won + lost))
    assert covered(pairs, won - lost, difference_bounds) >= LEAST
    assert covered(pairs * rng.random(pairs.shape), (won - lost) / 2, difference_bounds) >= LEAST


@pytest.mark.parametrize("size", [1, 5, 500])
def test_where_all_problems_agree_the_interval_has_a_width(size):
    """Nothing wrong in n problems leaves room for up to about 3 in n; no pair apart leaves room on both sides."""
    low, high = share_bounds([1.0, 0.0], [1.0, 0.0], size)
    assert high[0] == 1.0 and low[1] == 0.0 and low[0] == pytest.approx(1 - high[1])
    assert 3 / (size + 3) < high[1] < 6 / (size + 1.5)
    low, high = difference_bounds([0.0], [0.0], size)
    assert -low[0] == high[0] > 1 / (size + 2)


def test_ends_are_those_of_the_published_example():
    """Newcombe 1998, table I, method 4: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    published = {
        (81, 263): (0.2535, 0.3682),
        (15, 148): (0.0598, 0.1644),
        (0, 20): (0.0, 0.2005),
        (1, 29): (0.0018, 0.1963),
    }
    for (right, size), expected in published.items():
        low, high = share_bounds([right / size], [right / size], size)
        assert (low[0], high[0]) == (pytest.approx(expected[0], abs=5e-5), pytest.approx(expected[1], abs=5e-5))


def test_values_that_vary_less_count_as_more_problems_but_a_few_that_agree_prove_little():
    half = np.array([0.5])
    assert effective_problems(half, half, 100) == 100  # 0 and 1
    assert effective_problems(half, half**2, 100) == pytest.approx(100 * (25 + 3) / 3)  # all 0.5: the prior is left
    assert effective_problems(half, half**2, 5) == pytest.approx(5 * (1.25 + 3) / 3)
    few = np.array([0.01])  # one success in 100 problems, in small parts
    assert effective_problems(few, few**2, 100) == pytest.approx(100 * (0.99 + 3) / 3)


def test_the_mean_lies_in_its_interval_and_the_interval_in_the_range():
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 300):
        values = rng.choice([0.0, 0.1, 0.5, 1.0], (200, size))
        mean, square = values.mean(1), np.square(values).mean(1)
        low, high = share_bounds(mean, square, size)
        assert ((low >= 0) & (low <= mean) & (mean <= high) & (high <= 1)).all()
        low, high = difference_bounds(mean, square, size)
        assert ((low >= -1) & (low <= mean) & (mean <= high) & (high <= 1)).all()

"""Random numbers as a function of their key."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from latent_tts.seeding import fold_in, keep_mask, normal, problem_keys, uniform


def keys(count: int) -> torch.Tensor:
    return fold_in(problem_keys(0, ["a"]), torch.arange(count))


@pytest.mark.parametrize(
    "draw", [uniform, normal, lambda k, shape: keep_mask(k, shape, 0.3)], ids=["uniform", "normal", "mask"]
)
def test_a_rows_numbers_are_bitwise_the_same_whatever_is_drawn_beside_it(draw):
    rows = keys(37)
    together = draw(rows, (101,))
    for size in (1, 2, 5, 36):
        apart = torch.cat([draw(part, (101,)) for part in rows.split(size)])
        assert torch.equal(together, apart)
    assert torch.equal(draw(rows.flip(0), (101,)), together.flip(0))
    assert torch.equal(draw(rows, (60,)), together[:, :60])


def test_the_stream_is_pinned_to_published_splitmix64_outputs():
    # First outputs of SplitMix64 with state 1234567, from the generator's reference implementation.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    ours = uniform(torch.tensor([1234567]), (3,))[0]
    assert ours.tolist() == [((value >> 11) + 0.5) * 2.0**-53 for value in expected]


def test_numbers_are_distributed_as_they_say():
    sample = uniform(keys(64), (500,)).flatten().numpy()
    assert stats.kstest(sample, "uniform").pvalue > 1e-3
    sample = normal(keys(64), (500,)).flatten().numpy()
    assert stats.kstest(sample, "norm").pvalue > 1e-3
    for p in (1e-9, 0.1, 0.5, 0.9):
        kept = keep_mask(keys(64), (1001,), p).sum().item()
        assert stats.binomtest(kept, 64 * 1001, 1 - p).pvalue > 1e-3


def test_neighbouring_keys_and_positions_are_uncorrelated():
    sample = normal(keys(400), (400,)).double()
    rows, columns = torch.corrcoef(sample), torch.corrcoef(sample.T)
    off = ~torch.eye(400, dtype=torch.bool)
    bound = 5.5 / 400**0.5  # of 160,000 coefficients with deviation 1/sqrt(400) hardly one lies beyond
    assert rows[off].abs().max() < bound
    assert columns[off].abs().max() < bound


def test_keys_depend_on_every_part_and_do_not_collide():
    assert len({*problem_keys(0, [str(i) for i in range(5000)]).tolist(), *problem_keys(1, ["0"]).tolist()}) == 5001
    grid = fold_in(fold_in(problem_keys(0, ["a"]), torch.arange(200)).unsqueeze(1), torch.arange(-100, 100))
    assert grid.unique().numel() == 200 * 200
    assert problem_keys(1, ["2"]) != problem_keys(12, [""])
    one, two = torch.tensor(1), torch.tensor(2)
    assert fold_in(fold_in(one, 1), 2) != fold_in(fold_in(one, 2), 1) != fold_in(fold_in(two, 1), 1)


@pytest.mark.parametrize("number", [0, 1, -1, 7, 2**31, 2**62, -(2**62)])
def test_an_integer_is_folded_in_as_a_tensor_is(number):
    keys = problem_keys(0, ["a", "b"])
    assert torch.equal(fold_in(keys, number), fold_in(keys, torch.tensor(number)))


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    normal(keys(3), (5,))
    assert torch.equal(before, torch.get_rng_state())

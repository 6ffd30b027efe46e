"""Sums over problems do not depend on the order, on the batches, or on which rank counted what."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import Metric

from latent_tts.aggregation import BestOfN, MajorityVoting, WeightedVoting
from latent_tts.evaluation.summary import EvaluationMetrics
from latent_tts.metrics.exact_sum import exact_parts, exact_total
from tests.records import SEARCH, make_record

values = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(values, min_size=1, max_size=30), st.randoms())
def test_a_sum_is_the_rounded_sum_of_fractions_in_any_order(numbers, rng):
    """Each value cut off below 2^-64, as in the module's docstring; then exact."""
    shuffled = numbers.copy()
    rng.shuffle(shuffled)
    cut = sum(Fraction(math.trunc(Fraction(number) * 2**64), 2**64) for number in numbers)
    parts = exact_parts(torch.tensor(shuffled, dtype=torch.float64))
    assert exact_total(parts.sum(0)).item() == float(cut)


def test_a_value_above_the_cut_comes_back_as_it_was_and_shapes_stay():
    numbers = torch.tensor([[0.0, 1.0, -1.0, 1 / 3], [1e-3, -0.1, 123456.789, -1e9 / 7]], dtype=torch.float64)
    assert torch.equal(exact_total(exact_parts(numbers)), numbers)
    assert exact_total(exact_parts(torch.zeros(0, 2)).sum(0)).tolist() == [0.0, 0.0]


def test_float64_sums_would_have_depended_on_the_order():
    """The test above means something: of the same diversities, summed as floats, both orders differ."""
    numbers = [round(math.sin(i) ** 2, 6) for i in range(60)]
    assert sum(numbers) != sum(sorted(numbers))
    parts = exact_parts(torch.tensor(numbers, dtype=torch.float64))
    assert exact_total(parts.sum(0)) == exact_total(parts.flip(0).cumsum(0)[-1])


def merged(ranks: list[EvaluationMetrics]) -> EvaluationMetrics:
    """What torchmetrics makes of the states of several ranks: each is gathered, stacked and reduced."""
    together = deepcopy(ranks[0])
    for name, part in vars(together).items():
        if isinstance(part, Metric):
            for state, reduce in part._reductions.items():
                assert callable(reduce)
                stacked = torch.stack([getattr(getattr(rank, name), state) for rank in ranks])
                setattr(part, state, reduce(stacked))
            part._update_count = 1
    return together


RECORDS = [make_record(seed, searches=(SEARCH,)) for seed in range(9)]
PARTS = (MajorityVoting(), BestOfN(), WeightedVoting())


def counted(numbers: list[int]) -> EvaluationMetrics:
    metrics = EvaluationMetrics(4, 3, PARTS, [SEARCH])
    for number in numbers:
        metrics.update(RECORDS[number])
    return metrics


@pytest.fixture(scope="module")
def expected() -> str:
    """The metrics of one rank that counts the records one by one, in their order."""
    return json.dumps(counted(list(range(9))).compute())


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@settings(max_examples=20)
@given(st.permutations(range(9)), st.lists(st.integers(0, 3), min_size=9, max_size=9), st.integers(1, 4))
def test_metrics_are_the_same_text_however_records_are_shared_out_over_ranks(expected, order, owner, num_ranks):
    """Any order, 1 to 4 ranks, of which some may have no record, as after going on with another number; at once or one by one."""
    shares = [[RECORDS[number] for number in order if owner[number] % num_ranks == rank] for rank in range(num_ranks)]
    found = merged([EvaluationMetrics(4, 3, PARTS, [SEARCH]).count_all(share) for share in shares])
    assert json.dumps(found.compute()) == expected

"""The most likely token, found without the float32 scores of the whole vocabulary, against those scores."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latent_tts.acceleration import token_choice as vocabulary
from latent_tts.acceleration.token_choice import Screen, Vocabulary, block_scores, screened_argmax


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def best_by_float64(hidden: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return (hidden.double() @ table.double().t()).argmax(dim=-1)


@pytest.mark.parametrize("size", [1, 63, 64, 1000])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_screening_finds_the_most_likely_token_of_random_tables(size, scale):
    hidden, table = random(9, 48, seed=1) * scale, random(size, 48, seed=2)
    assert torch.equal(screened_argmax(hidden, table, Screen.of(table)), best_by_float64(hidden, table))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_screening_tells_apart_tokens_that_bfloat16_cannot(sign):
    """A hundred multiples of one row, 2^-16 apart, which bfloat16 rounds to nearly the same; all scores may be negative."""
    fooled = 0
    for seed in range(6):
        order = torch.randperm(100, generator=torch.Generator().manual_seed(seed)).unsqueeze(1)
        hidden = random(1, 32, seed=seed)
        table = sign * 20 * hidden * (1 + 2.0**-16 * order)
        exact = best_by_float64(hidden, table)
        fooled += int((hidden.bfloat16() @ table.bfloat16().t()).argmax() != exact)
        assert torch.equal(screened_argmax(hidden, table, Screen.of(table)), exact)
    assert fooled > 0  # or the test would show nothing


def test_the_bound_holds_where_rounding_does_its_worst():
    """All features of h and of token 0 are just below the middle between two bfloat16 numbers, so all are rounded down;
    those of token 1 are just above it, but for one that keeps its true score below that of token 0."""
    low, high = 1 + 2.0**-8 - 2.0**-20, 1 + 2.0**-8 + 2.0**-20  # rounded to 1 and to 1 + 2^-7
    hidden, table = torch.full((1, 64), low), torch.zeros(90, 64)
    table[0], table[1], table[1, 0] = low, high, 1 - 2.0**-8
    assert best_by_float64(hidden, table) == 0
    assert (hidden.bfloat16() @ table.bfloat16().t()).argmax() == 1
    assert screened_argmax(hidden, table, Screen.of(table)) == 0


def test_of_equal_tokens_the_first_is_chosen_and_crowded_rows_are_scored_in_full(monkeypatch):
    hidden, table = random(4, 16, seed=5), random(500, 16, seed=6)
    table[[70, 200, 400]] = 10 * hidden[0]  # three equal best tokens of row 0
    expected = best_by_float64(hidden, table)
    expected[0] = 70
    assert torch.equal(screened_argmax(hidden, table, Screen.of(table)), expected)
    monkeypatch.setattr(vocabulary, "_MAX_CANDIDATES", 2)
    assert torch.equal(screened_argmax(hidden, table, Screen.of(table)), expected)


def test_a_hidden_state_that_is_not_a_number_is_no_crash():
    hidden, table = random(3, 16, seed=7), random(100, 16, seed=8)
    hidden[1] = float("nan")
    chosen = screened_argmax(hidden, table, Screen.of(table))
    assert torch.equal(chosen[[0, 2]], best_by_float64(hidden, table)[[0, 2]])
    assert 0 <= chosen[1] < 100


def test_few_tokens_are_left_to_score_in_float32():
    hidden, table = random(32, 256, seed=9), random(20000, 256, seed=10)
    coarse, screen = hidden.bfloat16(), Screen.of(table)
    rows, _ = vocabulary._candidates(block_scores(coarse, screen.table), vocabulary._error(hidden, coarse, screen))
    assert len(rows) < 32 * 40


def test_of_a_table_in_bfloat16_the_token_with_the_best_float32_score_is_chosen():
    """Which bfloat16 scores do not always tell: rounded, the best of many scores are equal."""
    hidden, table = random(64, 32, seed=11).bfloat16(), random(2000, 32, seed=12).bfloat16()
    expected = best_by_float64(hidden, table)
    assert torch.equal(screened_argmax(hidden, table, Screen.of(table)), expected)
    assert not torch.equal((hidden @ table.t()).argmax(dim=-1), expected)


@pytest.mark.parametrize("least", [1, 10**9])  # weights from which on the table is screened
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changed_weights_are_noticed(dtype, least, monkeypatch):
    monkeypatch.setattr(vocabulary, "_MIN_WEIGHTS", least)
    monkeypatch.setattr(vocabulary, "has_bfloat16_units", lambda: True)
    head = nn.Linear(32, 90, bias=False, dtype=dtype).requires_grad_(False)
    hidden, chooser = random(300, 32, seed=13).to(dtype), Vocabulary()
    for seed in (1, 2):
        head.weight.copy_(random(90, 32, seed=seed))
        with torch.inference_mode():
            chosen = chooser.most_likely(hidden, head, head)
        scores = hidden.double() @ head.weight.double().t()
        lost = scores.amax(dim=1) - scores.gather(1, chosen.unsqueeze(1))[:, 0]
        assert (lost <= (2.0**-7 * scores.abs().amax() if dtype == torch.bfloat16 else 1e-6)).all()


def test_an_output_layer_that_is_more_than_a_matrix_is_asked_itself(monkeypatch):
    monkeypatch.setattr(vocabulary, "_MIN_WEIGHTS", 1)
    monkeypatch.setattr(vocabulary, "has_bfloat16_units", lambda: True)
    head = nn.Linear(16, 90, bias=True).requires_grad_(False)
    hidden = random(300, 16, seed=14)
    assert torch.equal(Vocabulary().most_likely(hidden, head, head), head(hidden).argmax(dim=-1))

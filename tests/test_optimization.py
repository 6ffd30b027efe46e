"""The course of the learning rate, with its values worked out by hand."""

from __future__ import annotations

import math

import pytest

from latent_tts.errors import UserError
from latent_tts.training.optimization import Optimization


def factors(options: Optimization, steps: int, total: float, **kwargs) -> list[float]:
    return [options.lr_factor(step, total, **kwargs) for step in range(steps)]


def test_warm_up_rises_and_a_constant_schedule_stays():
    assert factors(Optimization(warmup_steps=4), 6, math.inf) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert factors(Optimization(warmup_share=0.2), 4, 20) == [0.25, 0.5, 0.75, 1]
    assert factors(Optimization(warmup_steps=2), 6, 9, warmup_start=3)[3:] == [0.5, 1, 1]


def test_a_line_falls_from_the_end_of_the_warm_up_to_nothing():
    """2 of 10 steps of warm-up, then 8 steps down: 8/8 at step 2, 7/8 at step 3, ..., 1/8 at the last."""
    found = factors(Optimization(warmup_steps=2, schedule="linear"), 10, 10)
    assert found == pytest.approx([0.5, 1] + [left / 8 for left in range(8, 0, -1)])


def test_half_a_cosine_after_the_warm_up():
    found = factors(Optimization(warmup_share=0.2, schedule="cosine"), 10, 10)
    assert found == pytest.approx([0.5, 1] + [0.5 + 0.5 * math.cos(math.pi * gone / 8) for gone in range(8)])


def test_it_may_fall_in_the_last_part_only():
    found = factors(Optimization(schedule="linear", decay_share=0.4), 10, 10)
    assert found == pytest.approx([1] * 7 + [0.75, 0.5, 0.25])


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="max_epochs"):
        Optimization(schedule="cosine").lr_factor(0, math.inf)
    for options in ({"warmup_share": 1.0}, {"warmup_steps": -1}, {"decay_share": 0.0}):
        with pytest.raises(UserError):
            Optimization(**options)

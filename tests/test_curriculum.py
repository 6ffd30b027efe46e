"""The schedule of stages, and the tokens an example becomes in each of them."""

from __future__ import annotations

from collections import Counter

import pytest

from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample
from latent_tts.training.coconut_curriculum import Curriculum, build_sequences

EXAMPLE = ReasoningExample("Q?", ("<<1+2=3>>", "<<3+4=7>>", "<<7+5=12>>", "<<12-4=8>>"), "8")
END, EOS = 1, 0


def encode(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


def written(stage: int, example: ReasoningExample = EXAMPLE) -> tuple[int, str]:
    """Number of latents, and the text between the end-of-thought token and the end of text."""
    (sequence,) = build_sequences([example], [stage], Curriculum(), encode, encode, END, EOS)
    assert sequence.prompt_ids == list(b"Q?")
    assert (sequence.tail_ids[0], sequence.tail_ids[-1]) == (END, EOS)
    return sequence.num_latents, bytes(sequence.tail_ids[1:-1]).decode()


def test_published_schedule_has_three_epochs_a_stage_and_then_the_final_stage():
    curriculum = Curriculum(cot_epochs=3, epochs_per_stage=3)
    stages = [curriculum.stage(epoch) for epoch in range(25)]
    assert stages == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 13


def test_a_stage_replaces_one_more_step_by_two_latents():
    assert written(0) == (0, "<<1+2=3>>\n<<3+4=7>>\n<<7+5=12>>\n<<12-4=8>>\n### 8")
    assert written(1) == (2, "<<3+4=7>>\n<<7+5=12>>\n<<12-4=8>>\n### 8")
    assert written(2) == (4, "<<7+5=12>>\n<<12-4=8>>\n### 8")
    assert written(3) == (6, "<<12-4=8>>\n### 8")
    assert written(4) == (6, "### 8")


def test_a_short_example_thinks_as_long_as_the_stage_says():
    short = ReasoningExample("Q?", ("<<1+2=3>>",), "3")
    assert written(1, short) == (2, "### 3")
    assert written(3, short) == (6, "### 3")


def test_example_without_steps_is_an_answer_alone():
    assert written(0, ReasoningExample("Q?", (), "3")) == (0, "### 3")


def test_rows_of_a_batch_may_be_at_different_stages():
    rows = build_sequences([EXAMPLE, EXAMPLE], [4, 1], Curriculum(), encode, encode, END, EOS)
    assert [row.num_latents for row in rows] == [6, 2]


def test_without_mixing_every_example_is_at_the_stage_of_the_epoch():
    assert {Curriculum().draw_stage(3, str(i)) for i in range(50)} == {3}


def test_mixing_draws_earlier_stages_with_its_probability_and_repeats_for_the_same_key():
    """With probability 0.5 one of stages 0, 1, 2 instead of 3: about 1000/6 of 1000 draws each, 500 stay."""
    curriculum = Curriculum(uniform_prob=0.5)
    draws = [curriculum.draw_stage(3, f"key {i}") for i in range(1000)]
    counts = Counter(draws)
    assert draws == [curriculum.draw_stage(3, f"key {i}") for i in range(1000)]
    assert counts[3] == pytest.approx(500, abs=60)
    assert all(counts[stage] == pytest.approx(167, abs=45) for stage in range(3))


def test_every_stage_is_described_in_the_log():
    texts = [Curriculum().describe(stage) for stage in range(5)]
    assert texts[0] == "stage 0 of 4, chain-of-thought, no latents"
    assert texts[2] == "stage 2 of 4, 4 latents in place of the first 2 written steps"
    assert texts[4] == "stage 4 of 4, 6 latents in place of all written steps"


@pytest.mark.parametrize(
    "bad", [{"cot_epochs": -1}, {"epochs_per_stage": 0}, {"latent_stages": 0}, {"uniform_prob": 1.5}]
)
def test_impossible_schedule_is_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        Curriculum(**bad)

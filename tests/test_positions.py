"""Examples too long for the model's positions are left out and counted, in training and validation, for every kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import ReasoningStepsDataModule
from datamodules.positions import PositionLimit
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample
from latent_tts.training.optimization import Optimization
from lightning_modules.backbone_module import BackboneModule
from lightning_modules.colar_module import ColarModule
from tests.training import MAKERS, addition, make_trainer, write_tiny_model

TOO_LONG = Path(__file__).parent / "data" / "cases" / "too_long_steps.json"


def make_colar(model: Path, **options: Any) -> BackboneModule:
    defaults: dict[str, Any] = {"max_latents": 2, "compression": [1, 2], "thinking_speed": 1, "global_batch_size": 1}
    defaults |= {"optimization": Optimization(lr=1e-2), "max_answer_tokens": 4}
    return ColarModule(str(model), **(defaults | options))


KINDS: dict[str, Callable[..., BackboneModule]] = MAKERS | {"colar": make_colar}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / request.param
    return write_tiny_model(folder, architecture=request.param, max_positions=160, vocab_size=400)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_that_is_too_long_is_left_out_and_counted(model, kind):
    module = KINDS[kind](model, global_batch_size=1)
    rows = json.loads(TOO_LONG.read_text())
    data = ReasoningStepsDataModule(str(TOO_LONG), str(TOO_LONG), batch_size=1)
    # Every question of this file is one of validation: another file has the ones to train on.
    train = model.parent / "train.json"
    train.write_text(json.dumps([row | {"question": "Now. " + row["question"]} for row in rows]))
    data = ReasoningStepsDataModule(str(train), str(TOO_LONG), batch_size=1)
    trainer = make_trainer(max_epochs=1)
    with pytest.warns(UserWarning, match=r"1 of 2 examples left out, such as .* 'Now. Ann has 3 apples.*160 positions"):
        trainer.fit(module, datamodule=data)
    assert [example.question for example in data.train_examples.examples] == ["Now. " + rows[0]["question"]]
    assert [example.question for example in data.val_examples.examples] == [rows[0]["question"]]
    assert trainer.global_step == 1


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_those_that_training_feeds(model, kind):
    """An example that takes all positions trains; GPT-2 has no embedding for one more."""
    module = KINDS[kind](model)
    limit = module.max_positions
    assert limit == 160
    fitting = [word_problem(n) for n in range(1, 60)]
    needed = module.training_positions(fitting)
    assert needed == sorted(needed)
    best = max(i for i, count in enumerate(needed) if count <= limit)
    assert needed[best] > limit - 8 and needed[-1] > limit
    trainer = make_trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(module, datamodule=One(fitting[best]))
    assert trainer.global_step == 1


def word_problem(num_words: int) -> ReasoningExample:
    return ReasoningExample("Ann" + " has 3" * num_words + "?", ("<<3+4=7>>", "<<7+2=9>>"), "9")


class One(ReasoningStepsDataModule):
    """A training set of one example, whatever its length."""

    def __init__(self, example: ReasoningExample) -> None:
        super().__init__(val=None, batch_size=1)
        self.example = example

    def setup(self, stage: str) -> None:
        from datamodules.examples import ListedExamples

        self.train_examples = ListedExamples([self.example])


def test_left_padding_that_does_not_fit_is_one_sentence(model):
    """One long prompt and, in the same batch, one long solution: each fits, and neither does beside the other's padding."""
    module = MAKERS["codi"](model, left_padding=True, global_batch_size=2)
    wordy = word_problem(30)
    long_steps = ReasoningExample("3?", tuple(f"<<{i}+{i}={2 * i}>>" for i in range(10, 17)), "9")
    assert max(module.training_positions([wordy, long_steps])) <= 160
    with pytest.raises(UserError, match=r"left_padding makes a batch of 2 .* take \d+ of the model's 160 positions"):
        module.losses([wordy, long_steps])


def test_drawn_problems_that_do_not_fit_are_named(tmp_path):
    model = write_tiny_model(tmp_path / "short", max_positions=64, vocab_size=400)
    data = ReasoningStepsDataModule(val=None, train_size=8, templates=[43, 48, 10], batch_size=1)
    with pytest.raises(UserError, match=r"the drawn problem that starts .* needs \d+ of the model's 64 positions"):
        make_trainer(max_epochs=1).fit(MAKERS["cot"](model, global_batch_size=1), datamodule=data)


class Bytes:
    """A training whose tokens are bytes, with markers around every piece of text."""

    max_positions: int | None = 60

    def training_positions(self, examples: Sequence[ReasoningExample]) -> list[int]:
        pieces = [[example.question, *example.steps, example.answer] for example in examples]
        return [sum(len(piece.encode()) + 3 for piece in row) + 5 for row in pieces]

    validation_positions = training_positions


@given(st.text(max_size=60), st.lists(st.text(max_size=20), max_size=6))
def test_the_estimate_by_length_never_lets_a_long_example_in(question, steps):
    example, module = ReasoningExample(question, tuple(steps), "7"), Bytes()
    assert PositionLimit(module).fits(example) == (module.training_positions([example])[0] <= 60)
    assert PositionLimit(None).fits(example)
    assert PositionLimit(object()).fits(example)


def test_most_examples_are_not_tokenized():
    class Counting(Bytes):
        calls = 0
        max_positions = 2000

        def training_positions(self, examples: Sequence[ReasoningExample]) -> list[int]:
            self.calls += len(examples)
            return super().training_positions(examples)

    module = Counting()
    limit = PositionLimit(module)
    calls = module.calls
    assert all(limit.fits(addition(i)) for i in range(50))
    assert module.calls == calls

"""Which examples and questions are longer than the positions of the models that read them."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from latent_tts.engine.prompts import PromptRoom
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample


@runtime_checkable
class ReadsExamples(Protocol):
    """A training that can say how many of its model's positions an example takes."""

    @property
    def max_positions(self) -> int | None:
        """Positions of the model; None where there is no end to them."""

    def training_positions(self, examples: Sequence[ReasoningExample]) -> list[int]:
        """Positions of each example where it takes most."""

    def validation_positions(self, examples: Sequence[ReasoningExample]) -> list[int]:
        """Positions of each example's prompt, thoughts and longest answer."""


class PositionLimit:
    """Tells the examples that fit in a model's positions.

    A token is at least one byte of text, so most examples are known to fit by their lengths; only the others are tokenized.

    Args:
        module: The training; anything else, or None, sets no limit.
        validation: Whether the examples are generated from, or trained on.
    """

    def __init__(self, module: object, validation: bool = False) -> None:
        self.reader = module if isinstance(module, ReadsExamples) else None
        self.limit = None if self.reader is None else self.reader.max_positions
        self.validation = validation
        self.overhead = max(self._needed(example) for example in _SHORT) if self.limit is not None else 0

    def fits(self, example: ReasoningExample) -> bool:
        """Whether the model has a position for everything in an example."""
        if self.limit is None:
            return True
        characters = example.question + "".join(example.steps) + example.answer
        most = len(characters.encode()) + self.overhead * (1 + len(example.steps))
        return most <= self.limit or self._needed(example) <= self.limit

    def check(self, example: ReasoningExample) -> None:
        """UserError for an example that does not fit."""
        if not self.fits(example):
            raise UserError(
                f"the drawn problem that starts {example.question[:40]!r} needs {self._needed(example)} of the model's "
                f"{self.limit} positions: name other --data.templates or --data.step_range, or a longer model"
            )

    def warn(self, examples: Sequence[ReasoningExample], num_examples: int, name: str) -> None:
        """One warning where examples of a source did not fit."""
        if examples:
            rank_zero_warn(
                f"{name} data: {len(examples)} of {num_examples} examples left out, such as the one that starts "
                f"{examples[0].question[:40]!r}: they need more than the model's {self.limit} positions"
            )

    def _needed(self, example: ReasoningExample) -> int:
        assert self.reader is not None
        count = self.reader.validation_positions if self.validation else self.reader.training_positions
        return count([example])[0]


@runtime_checkable
class AsksQuestions(Protocol):
    """An evaluation or annotation, which can say how long a question may be."""

    def prompt_rooms(self) -> list[PromptRoom]:
        """One for each model that reads it."""


def rooms_of(module: object) -> tuple[PromptRoom, ...]:
    """Those of the models of a module; none where it is anything else, or None."""
    return tuple(module.prompt_rooms()) if isinstance(module, AsksQuestions) else ()


def too_long(question: str, rooms: Sequence[PromptRoom]) -> str | None:
    """What a question needs that a model does not have; None where all of them have a position for everything."""
    for room in rooms:
        if room.lacks(question):
            needs = f"it needs {room.needed(question)} of the {room.model}'s {room.positions} positions"
            return f"the question that starts {question[:40]!r} leaves no room for thoughts and answer: {needs}"
    return None


_SHORT = (
    ReasoningExample("a", ("a",), "0"),
    ReasoningExample("a", ("a", "a", "a", "a"), "0"),
)  # for what is added to text

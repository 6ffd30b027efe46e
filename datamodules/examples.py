"""Training examples by their index: those of a table, in memory, and those that are drawn when they are asked for."""

from collections.abc import Callable, Sequence

from torch.utils.data import Dataset

from datamodules.sources.streams import ExampleStream
from latent_tts.problems import ReasoningExample

CACHED_EXAMPLES = 20_000


class ListedExamples(Dataset[list[ReasoningExample]]):
    """Examples in memory, fetched by lists of indices."""

    def __init__(self, examples: Sequence[ReasoningExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, indices: list[int]) -> list[ReasoningExample]:
        return [self.examples[i] for i in indices]

    def length(self, index: int) -> int:
        """Characters of the example number `index`."""
        return num_characters(self.examples[index])


class GeneratedExamples(Dataset[list[ReasoningExample]]):
    """Examples drawn when they are asked for; there are `size` in an epoch, but any index is valid.

    Args:
        problems: Where they are drawn.
        size: Examples in an epoch.
        check: Raises a UserError for an example that can't be trained on.
    """

    def __init__(
        self, problems: ExampleStream, size: int, check: Callable[[ReasoningExample], None] = lambda example: None
    ) -> None:
        self.problems, self.size, self.check = problems, size, check
        self._cache: dict[int, ReasoningExample] = {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, indices: list[int]) -> list[ReasoningExample]:
        return [self._checked(i) for i in indices]

    def length(self, index: int) -> int:
        """Characters of the example number `index`."""
        return num_characters(self._example(index))

    def _checked(self, index: int) -> ReasoningExample:
        example = self._example(index)
        self.check(example)
        return example

    def _example(self, index: int) -> ReasoningExample:
        if index not in self._cache:
            if len(self._cache) >= CACHED_EXAMPLES:
                self._cache.clear()
            self._cache[index] = self.problems.example(index)
        return self._cache[index]


def num_characters(example: ReasoningExample) -> int:
    """Length of question, steps and answer together, a stand-in for the number of tokens."""
    return len(example.question) + sum(map(len, example.steps)) + len(example.answer)

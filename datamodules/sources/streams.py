"""Streams of training examples: example number i, for every i, as a function of a seed; and several of them in turn."""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from latent_tts.problems import ReasoningExample


class ExampleStream(Protocol):
    """Any number of examples, each by its index."""

    def example(self, index: int) -> ReasoningExample: ...


class ShuffledPasses:
    """Listed examples again and again; every pass has each of them once, in an order of (seed, pass)."""

    def __init__(self, examples: Sequence[ReasoningExample], seed: int) -> None:
        self.examples, self.seed = examples, seed

    def example(self, index: int) -> ReasoningExample:
        number, place = divmod(index, len(self.examples))
        return self.examples[_order(len(self.examples), f"{self.seed}/{number}")[place]]


@lru_cache(maxsize=16)
def _order(size: int, key: str) -> list[int]:
    return random.Random(key).sample(range(size), size)


class Mixture:
    """Streams in turn: of every sum(weights) examples in a row, stream k gives the next weights[k] of its own."""

    def __init__(self, streams: Sequence[ExampleStream], weights: Sequence[int]) -> None:
        self.streams, self.weights = streams, weights

    def example(self, index: int) -> ReasoningExample:
        turn, place = divmod(index, sum(self.weights))
        for stream, weight in zip(self.streams, self.weights, strict=True):
            if place < weight:
                return stream.example(turn * weight + place)
            place -= weight
        raise AssertionError("place is below the sum of the weights")

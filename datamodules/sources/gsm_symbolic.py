"""GSM-Symbolic problems, drawn from a seed by the package `reasoning-gym`; no files and no network are needed.

The templates come from GSM8K's test questions: a model trained on them is never scored on GSM8K or GSM-Hard.
"""

import random
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from typing import Any, Literal

from datamodules.sources.solutions import prose_solution
from latent_tts.answers import parse_answer
from latent_tts.errors import UserError
from latent_tts.problems import Problem, ReasoningExample, problem_id_from_question, question_key

Split = Literal["train", "validation", "test"]

# The templates that reasoning-gym calls sound and whose every solution parsed into equations that hold, in 2,000 draws
# of each. Of the other sound ones, some round on the way (2, 3, 4, 40, 49, 75, 99: 42 % to 99.9 % parse, where nothing
# was rounded), some use long decimals (46, 52, 66: 1 % to 67 %), two use fractions or algebra (60, 83: none parses).
# In 27 and 82 the solution takes one product from the question without writing it as an equation.
# fmt: off
PARSED_TEMPLATES = (
    0, 1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30,
    31, 33, 34, 36, 38, 39, 41, 42, 43, 44, 45, 47, 48, 50, 51, 53, 54, 55, 56, 57, 58, 59, 62, 64, 67, 68,
    69, 70, 71, 72, 73, 78, 80, 81, 82, 84, 85, 88, 89, 91, 92, 93, 94, 95, 96,
)
# fmt: on
NUM_TEMPLATES = 100
_MAX_ATTEMPTS = 10_000
_HELD_OUT_IN_16: dict[int, Split] = {0: "validation", 1: "test"}


class GSMSymbolic:
    """Example number i of a seed, for every i: the same on every machine, and independent of all other examples.

    Each example has its own random stream, seeded with a hash of (seed, i), so that no two seeds share examples by
    construction. `split` cuts the space of all questions in three by a hash of the question's text (14/16 train, 1/16
    each validation and test): a question of one split can't be drawn in another, whatever the seeds and sizes.

    `num_drawn` and `num_left_out` count the solutions seen so far and those among them that did not parse.

    Args:
        seed: Seed of the problems.
        templates: Template ids to draw from; all templates of which every solution parses where it is None.
        split: The part of the question space to draw from; None draws from all of it.
        excluded: Questions (their `question_key`) that are never drawn.
    """

    def __init__(
        self,
        seed: int,
        templates: Sequence[int] | None = None,
        split: Split | None = None,
        excluded: Collection[str] = (),
    ) -> None:
        self.seed = seed
        self.templates = tuple(PARSED_TEMPLATES if templates is None else templates)
        self.split = split
        self.excluded = frozenset(excluded)
        self.num_drawn = 0
        self.num_left_out = 0
        unknown = [template for template in self.templates if not 0 <= template < NUM_TEMPLATES]
        if unknown or not self.templates:
            raise UserError(f"templates must be ids from 0 to {NUM_TEMPLATES - 1}, got {list(self.templates)}")
        self._generators = _generators()

    def example(self, index: int) -> ReasoningExample:
        """Example number `index`: the first draw of its random stream that is in the split and parses."""
        rng = random.Random(blake2b(f"gsm-symbolic/{self.seed}/{index}".encode(), digest_size=16).digest())
        for _ in range(_MAX_ATTEMPTS):
            example = self._draw(rng)
            if example is not None:
                return example
        raise UserError(
            f"no solution of the templates {list(self.templates)} parsed in {_MAX_ATTEMPTS} draws: "
            "name other templates, or none for the tested default"
        )

    def _draw(self, rng: random.Random) -> ReasoningExample | None:
        template = rng.choice(self.templates)
        try:
            drawn = self._generators[template](rng, 1.0)
        except (ValueError, ZeroDivisionError, IndexError):  # some templates have no solution for some numbers
            self.num_drawn, self.num_left_out = self.num_drawn + 1, self.num_left_out + 1
            return None
        question = drawn["question"].strip()
        question_id = problem_id_from_question(question)
        if self.excluded and question_key(question) in self.excluded:
            return None
        if self.split is not None and split_of(question_id) != self.split:
            return None
        self.num_drawn += 1
        solution = prose_solution(drawn["metadata"]["answer_cot"])
        if solution is None:
            self.num_left_out += 1
            return None
        return ReasoningExample(question, *solution)

    def problem(self, index: int) -> Problem:
        """The same question as `example(index)`, with its gold answer; the id does not count repeats."""
        example = self.example(index)
        gold = parse_answer(example.answer)
        assert gold is not None  # a parsed solution ends in a number
        return Problem(problem_id_from_question(example.question), example.question, gold)


def split_of(question_id: str) -> Split:
    """The split that a question belongs to, by its id alone."""
    return _HELD_OUT_IN_16.get(int(question_id[-1], 16), "train")


def _generators() -> dict[int, Callable[[random.Random, float], dict[str, Any]]]:
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import GSMSymbolicDataset, GSMSymbolicDatasetConfig

    made: dict[int, Callable[[random.Random, float], dict[str, Any]]] = GSMSymbolicDataset(
        GSMSymbolicDatasetConfig(seed=0, size=1)
    ).generators
    return made

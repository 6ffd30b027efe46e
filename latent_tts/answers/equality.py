"""When two answers are the same."""

from functools import lru_cache
from typing import Literal

AnswerRule = Literal["tolerance", "strict"]


@lru_cache(maxsize=16384)  # the rollouts of a problem give the same few answers, and are asked for more than once
def answer_key(answer: float) -> float:
    """The value that stands for all answers equal to this one; votes are counted by it.

    Tolerance: numbers of magnitude 1 or more are equal when they agree after rounding to 3 decimals (and 12
    significant digits, the reach of a float's arithmetic); smaller ones when they agree in 4 significant digits.
    """
    if abs(answer) < 1:
        return float(f"{answer:.4g}") + 0.0  # + 0.0 turns -0.0 into 0.0
    return float(f"{round(answer, 3):.12g}")


def answers_equal(a: float | None, b: float | None, rule: AnswerRule = "tolerance") -> bool:
    """Whether two parsed answers are the same. None equals nothing, not even None.

    `tolerance` compares `answer_key`s; `strict` is the published rule, exact equality of the floats.
    """
    if a is None or b is None:
        return False
    return a == b if rule == "strict" else answer_key(a) == answer_key(b)

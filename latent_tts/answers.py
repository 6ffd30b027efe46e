"""One parser and one equality for answers, of models and of data sets alike."""

import math
import re
from typing import Literal

AnswerRule = Literal["tolerance", "strict"]

_MARKER = re.compile(r"#{3,}|answer(?:\s+is)?\s*:|answer\s+is", re.IGNORECASE)
_NUMBER = re.compile(
    r"""(?P<sign>(?<![\w.)])[-\u2212])?        # a minus sign, unless it subtracts from something
        (?:[$\u20ac\u00a3]\s?)?
        (?P<inner_sign>(?<=[$\u20ac\u00a3])-)?  # $-5
        (?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)
        (?P<exponent>[eE][-+]?\d+)?
        (?:/(?P<denominator>\d+)(?![\d/]))?""",
    re.VERBOSE,
)


def parse_answer(text: str) -> float | None:
    """The answer that a text states, or None where it states none (or one that no float holds).

    After the last marker (`###`, `####`, `Answer:`, `answer is`) it is the first number; a text without a marker
    ends in its answer, so there it is the last number. A marker with no number behind it is no answer.

    >>> parse_answer("### 72"), parse_answer("The answer is: $1,234.50."), parse_answer("Answer:-3")
    (72.0, 1234.5, -3.0)
    """
    markers = list(_MARKER.finditer(text))
    tail = text[markers[-1].end() :] if markers else text
    numbers = list(_NUMBER.finditer(tail))
    if not numbers:
        return None
    return _value(numbers[0] if markers else numbers[-1])


def _value(number: re.Match[str]) -> float | None:
    try:
        value = float(number["digits"].replace(",", "") + (number["exponent"] or ""))
        value /= float(number["denominator"] or 1)
    except (ZeroDivisionError, OverflowError):
        return None
    if number["sign"] or number["inner_sign"]:
        value = -value
    return value if math.isfinite(value) else None


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

"""Problems with masked numbers, as MAWPS and ASDiv-A are handed round: text with number0, number1; a prefix equation.

How many are number0 rows of number1 chairs ?  |  27.0 16.0  |  * number0 number1   ->   <<27*16=432>>
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from datamodules.resampling.templates import plain_decimal
from datamodules.sources.solutions import clean_number
from latent_tts.problems import ReasoningExample

MASKED_COLUMNS = frozenset({"Question", "Numbers", "Equation", "Answer"})
_MASK = re.compile(r"(?<![A-Za-z])number(\d+)")
_MAX_DECIMALS = 4
_ONE_DECIMAL_OF_A_DOLLAR = re.compile(r"\$\d+\.\d(?!\d)")
_DETOKENIZE = [
    (re.compile(r"``\s?|\s?''"), '"'),
    (re.compile(r"\s+(?=[.,?;:!%)]|'s\b|n't\b|'(?=\s)|\u2019)"), ""),
    (re.compile(r"(?<=[$(])\s+"), ""),
    (re.compile(r"(?<=\w) - (?=\w)"), "-"),
    (re.compile(r"\s+"), " "),
]
_SENTENCE_START = re.compile(r"(?:^|(?<=[.?!]\s))[a-z]")
_ABBREVIATIONS = re.compile(r"\b(?:mr|mrs|ms|dr)\. \w")


def is_masked(columns: Mapping[str, Any]) -> bool:
    """Whether a row is a masked problem, known by the columns of its table."""
    return columns.keys() >= MASKED_COLUMNS


def holds_mask(question: str) -> bool:
    """Whether a number is still masked in a question."""
    return _MASK.search(question) is not None


def masked_question(columns: Mapping[str, Any]) -> str:
    """The question with its own numbers filled in.

    Raises:
        ValueError, IndexError: There is no number for a mask.
    """
    numbers = _numbers(columns)
    question = detokenize(_MASK.sub(lambda mask: numbers[int(mask[1])], str(columns["Question"])))
    return _ONE_DECIMAL_OF_A_DOLLAR.sub(r"\g<0>0", question)


def masked_example(columns: Mapping[str, Any]) -> ReasoningExample | None:
    """The problem with its own numbers filled in; None where its equation does not give its answer in plain decimals."""
    try:
        question = masked_question(columns)
        steps, answer = prefix_steps(str(columns["Equation"]), _numbers(columns))
        right = clean_number(str(columns["Answer"])) == answer
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return ReasoningExample(question, steps, answer) if steps and right else None


def _numbers(columns: Mapping[str, Any]) -> list[str]:
    return [clean_number(number) for number in str(columns["Numbers"]).split()]


def prefix_steps(equation: str, numbers: list[str]) -> tuple[tuple[str, ...], str]:
    """The steps of a prefix equation, operands before what they go into, and the last result.

    >>> prefix_steps("- number0 * number1 number2", ["25", "3", "8"])
    (('<<3*8=24>>', '<<25-24=1>>'), '1')

    Raises:
        ValueError, IndexError, ZeroDivisionError: It is no such equation, or a result has more than four decimals.
    """
    tokens, steps = iter(equation.split()), []

    def operand() -> str:
        token = next(tokens, "")
        if token not in ("+", "-", "*", "/"):
            mask = _MASK.fullmatch(token)
            return numbers[int(mask[1])] if mask else clean_number(token)
        left, right = operand(), operand()
        result = _result(token, Fraction(left), Fraction(right))
        steps.append(f"<<{left}{token}{right}={result}>>")
        return result

    answer = operand()
    if next(tokens, None) is not None:
        raise ValueError(f"{equation!r} goes on after its end")
    return tuple(steps), answer


def _result(operator: str, left: Fraction, right: Fraction) -> str:
    results = {"+": left + right, "-": left - right, "*": left * right}
    value = left / right if operator == "/" else results[operator]
    if (value * 10**_MAX_DECIMALS).denominator != 1:
        raise ValueError(f"{value} has more than {_MAX_DECIMALS} decimals")
    return plain_decimal(value)


def detokenize(text: str) -> str:
    """Written text from tokens with blanks around them, every sentence with a capital."""
    for pattern, replacement in _DETOKENIZE:
        text = pattern.sub(replacement, text.strip())
    text = _ABBREVIATIONS.sub(lambda name: name[0].title(), text)
    return _SENTENCE_START.sub(lambda letter: letter[0].upper(), text)

"""Numbers as people write them: thousands separators of several countries, fractions, powers of ten, LaTeX."""

import math
import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

_MINUS = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d"), "-")
_VULGAR_FRACTION = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")
_LATEX = [
    (re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}|\\frac\s?(\d)\s?(\d)"), r" \1\3/\2\4"),
    (re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\!"), ""),
    (re.compile(r"(?<=\d)\{,\}(?=\d)|(?<=\d)\\[,;:](?=\d{3})"), ","),
    (re.compile(r"\\[ ,;:]|\\quad"), " "),
    (re.compile(r"\\(?:times|cdot)"), "\u00d7"),
    (re.compile(r"\^?\s?\\circ|\^\{\\circ\}"), "\u00b0"),
    (re.compile(r"\\\(|\\\)|\\\[|\\\]"), " "),
    (re.compile(r"\\([%$#])"), r"\1"),
    (re.compile(r"- +(?=\d+/\d)"), "-"),
]
_MATHS = re.compile(r"\$([^$]*\d[^$]*)\$")
_SCALES = {"hundred": "1e2", "thousand": "1e3", "million": "1e6", "billion": "1e9", "trillion": "1e12"}

N = TypeVar("N", float, Fraction)

_NUMBER = r"""
    (?P<other>                                          # a date, a time, a version, a root: no number, but one thing
        \d+(?:/\d+){2,} | \d+(?::\d+)+ | \d{4}-\d\d-\d\d(?![\d=]) | \d+(?:\.\d+){3,} | \d+\.\d+\.(?!\d{3}(?!\d))\d+
      | (?:\d[\d.]*\s?)?(?:\\(?:sqrt|frac|pi|log|ln|sin|cos|tan|infty|binom)|[\u221a\u03c0\u221e])(?:\s?\{[^{}]*\})*
    )
  | (?P<sign>(?<![\w.)%])-|\A\s*-\s+)?                  # a minus sign, unless it subtracts from something
    (?:(?:(?:US)?[$\u20ac\u00a3\u00a5\u20b9]|\b(?:USD|EUR|GBP|Rs\.?)(?=[\s\d]))\s?(?P<inner_sign>-)?)?
    (?:
        (?:(?P<whole>\d+)\s)?(?P<numerator>\d+)\s?/\s?(?P<denominator>\d+)(?![\d/.])
      | (?P<digits>
            \d{1,3}(?P<separator>[,\u00a0\u2009\u202f'\u2019_BLANK])\d{3}(?:(?P=separator)\d{3})*(?!\d)(?:\.\d+)?
          | \d{1,2}(?:,\d{2})+,\d{3}(?!\d)(?:\.\d+)?    # 1,23,456 in India
          | \d{1,3}(?:\.\d{3})+,\d{1,2}(?!\d)           # 1.234,50 on the continent
          | \d{1,3}(?:\.\d{3}){2,}(?![\d.])             # and 1.234.567
          | \d+(?:\.\d+)?
          | \.\d+
        )
        (?:[eE](?P<exponent>[-+]?\d+))?
        (?:\s?[x\u00d7*]\s?10\s?(?:\^|\*\*)\s?[{(]?(?P<power>-?\d+)[)}]?)?
        (?:/(?P<divisor>\d+)(?![\d/.]))?
        (?:\s(?P<scale>hundred|thousand|million|billion|trillion)\b)?
    )
"""
NUMBER = re.compile(_NUMBER.replace("BLANK", " "), re.VERBOSE)
PROSE_NUMBER = re.compile(_NUMBER.replace("BLANK", ""), re.VERBOSE)  # where two numbers may follow each other


def plain_text(text: str) -> str:
    """A text with one kind of minus sign and without the commands of LaTeX that only set numbers."""
    text = _VULGAR_FRACTION.sub(_spelled_out, text.translate(_MINUS))
    if "\\" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    return _MATHS.sub(r"\1", text)


def _spelled_out(fraction: re.Match[str]) -> str:
    spelled = unicodedata.normalize("NFKC", fraction[0]).replace("\u2044", "/")
    return f" {spelled}" if fraction.start() and fraction.string[fraction.start() - 1].isdigit() else spelled


def number_value(number: re.Match[str]) -> float | None:
    """The value of a match of NUMBER; None where no float holds it, or where it divides by zero."""
    try:
        value = _value(number, float)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def is_held(number: re.Match[str]) -> bool:
    """Whether the float of a match of NUMBER is the number that is written, and not merely the nearest there is.

    A decimal's float is the nearest by nature, as is that of a number with an exponent. Of whole numbers beyond 2^53 floats hold
    but some, and what is smaller than all of them is not 0.
    """
    value = number_value(number)
    if value is None or 0 < abs(value) < 2**53:
        return value is not None
    exact = _value(number, Fraction)
    is_nearest = value != 0 and (
        exact.denominator != 1 or number["exponent"] is not None or number["power"] is not None
    )
    return is_nearest or exact == Fraction(value)


def _value(number: re.Match[str], of: Callable[[str], N]) -> N:
    """In numbers that `of` reads from text: floats, or fractions, which are exact."""
    value = _unsigned(number, of)
    return -value if number["sign"] or number["inner_sign"] else value


def _unsigned(number: re.Match[str], of: Callable[[str], N]) -> N:
    if number["numerator"]:
        return of(number["whole"] or "0") + _divided(of(number["numerator"]), of(number["denominator"]))
    digits, separator = number["digits"], number["separator"]
    if separator:
        digits = digits.replace(separator, "")
    elif "," in digits and "." in digits and digits.rindex(",") > digits.rindex("."):
        digits = digits.replace(".", "").replace(",", ".")
    elif digits.count(".") > 1:
        digits = digits.replace(".", "")
    value = of(f"{digits.replace(',', '')}e{number['exponent'] or 0}")
    value *= of("10") ** int(number["power"] or 0) * of(_SCALES.get(number["scale"] or "", "1"))
    return _divided(value, of(number["divisor"] or "1"))


def _divided(value: N, by: N) -> N:
    if not math.isfinite(by):
        raise OverflowError("a divisor that no float holds")
    return value / by

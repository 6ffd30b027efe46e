"""The number in an answer, by what may stand around it: much in a model's answer, nothing but a unit in a gold one."""

import re

from latent_tts.answers.numbers import NUMBER, PROSE_NUMBER, is_held, number_value, plain_text

_MARKER = re.compile(r"#{3,}|answer(?:\s+is)?\s*[:=]|answer\s+is|\\boxed\s*\{", re.IGNORECASE)
_OPERATION = re.compile(r"[^\n,;:=<>*/+-]{0,40}?(?P<sign>==?|\*\*?|[-+/^\u00d7\u00f7]|\bx\b)[\s($\u20ac\u00a3]*")
_UNIT = re.compile(
    r"""(?:
        (?:\A|\s+|[/-])[^\W\d_]+(?:[.'][^\W\d_]+)*\.?(?:\^?[23](?!\d)|[\u00b2\u00b3])?   # km/h, sq. ft., m^2
      | \s*\([^\W\d_][^\d()]*\)                                                       # (apples)
      | \s*[%\u00b0]
    )*\s*\.?\s*""",
    re.VERBOSE,
)
_NO_UNIT = re.compile(
    r"(?i:\b(?:[xyzneia]|pi|and|or|to|plus|minus|times|dozens?|[ap]\.?m)\b)"
    r"|\A\s?(?:[kKMB]|[mb]n|mio|mil|mrd)\b"  # 5k, $3M: thousands, millions or another unit
)
_BOLD = re.compile(r"(?<!\d)\*\*|\*\*(?!\s*[\d(])")  # and not the power of 10**3
_BEFORE = re.compile(r"\A(?:[A-Za-z]\s*=\s*)?\+?")  # the x = of "x = 5"


def parse_answer(text: str) -> float | None:
    """The answer that a text states, or None where it states none (or one that no float holds).

    After the last marker (`###`, `####`, `Answer:`, `answer is`, `\\boxed{`) it is the first number, or where that begins
    an equation, the value behind its sign. A text without a marker ends in its answer, so there it is the last number. A
    marker with no number behind it is no answer; neither is an expression without its value, a date or a time.

    >>> parse_answer("### 72"), parse_answer("The answer is: $1,234.50."), parse_answer("Answer:9*3=91")
    (72.0, 1234.5, 91.0)
    """
    text = plain_text(text)
    markers = list(_MARKER.finditer(text))
    if not markers:
        numbers = [number for number in PROSE_NUMBER.finditer(text) if not number["other"]]
        return number_value(numbers[-1]) if numbers else None
    return _first_value(_tail(text, markers[-1]))


def parse_gold(text: str) -> float | None:
    """The number that a gold answer is; None where it is anything else, and so a bad row.

    Behind the marker of a written solution, if there is one, a gold answer is one number with nothing around it but a
    currency and a unit in words. Two numbers, a time, a root or a letter are no number; nothing is picked from them. Neither is
    one that a float would make another number of, as of most whole ones beyond 2^53.

    >>> parse_gold("She sells 13.\\n#### 1,013"), parse_gold("9 (apples)"), parse_gold("5:30 (P.M.)")
    (1013.0, 9.0, None)
    """
    text = plain_text(text)
    markers = list(_MARKER.finditer(text))
    text = _BEFORE.sub("", _BOLD.sub("", _tail(text, markers[-1]) if markers else text).strip())
    number = NUMBER.match(text)
    if number is None or number["other"] or not is_held(number):
        return None
    unit = text[number.end() :]
    return None if _NO_UNIT.search(unit) or not _UNIT.fullmatch(unit) else number_value(number)


def _tail(text: str, marker: re.Match[str]) -> str:
    """What stands behind a marker; of a box, what stands in it."""
    tail = text[marker.end() :]
    if not marker[0].startswith("\\"):
        return tail
    depth = 1
    for place, char in enumerate(tail):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return tail[:place]
    return tail


def _first_value(text: str) -> float | None:
    """The first number of a text; where an equation begins with it, its last side that is a single number."""
    numbers = iter(NUMBER.finditer(text))
    first = next(numbers, None)
    if first is None or first["other"]:
        return None
    sides, end = [[first]], first.end()
    for number in numbers:
        operation = _OPERATION.fullmatch(text, end, number.start())
        if operation is not None and operation["sign"][0] == "=":
            sides.append([number])
        elif operation is not None or (number["sign"] and text[end : number.start()].isspace()):
            sides[-1].append(number)
        else:
            break
        end = number.end()
    single = [side[0] for side in sides if len(side) == 1 and not side[0]["other"]]
    return number_value(single[-1]) if single else None

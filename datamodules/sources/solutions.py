"""Written solutions to equation steps: GSM8K's `<<...>>` annotations, and the plain prose of GSM-Symbolic."""

import ast
import operator
import re
from collections.abc import Callable

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_MAX_DECIMALS = 4
_ANNOTATION = re.compile(r"<<(.*?)>>")
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_TOKEN = re.compile(
    rf"""(?P<number>{_NUMBER})
      | (?P<operator>[-+*/\u00f7\u00d7\u2212()%](?![A-Za-z])|x(?![A-Za-z])|\((?=[A-Za-z]))
      | (?P<word>[-/]?[A-Za-z]+(?:[-/'\u2019][A-Za-z]+)*)
      | (?P<blank>\s+)
      | (?P<other>.)""",
    re.VERBOSE,
)
_VALUE = re.compile(rf"\s*(-?\s?{_NUMBER}%?)")
_SAME_AS = {"x": "*", "\u00d7": "*", "\u00f7": "/", "\u2212": "-"}
_CURRENCY = re.compile("[$\u20ac\u00a3]")
_UNKNOWN = re.compile(r"\s[-+]\s?[A-Z]\s*(?==)")  # the T of "20 + 46 + T = 66 + T = 90"
_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)\s+(?=[^\W\d_a-z]|[$\d(])"
)
_EQUATION = re.compile(r"\d[^=]*=\s*[$\u20ac\u00a3]?-?\d")
_HALF = re.compile(r"\bhalf(?=\s*\*)")
_PLAIN_NUMBER_IN_PARENTHESES = re.compile(r"\((\d+(?:\.\d+)?)\)")


def evaluate(expression: str) -> float:
    """The value of an expression of numbers, + - * / and parentheses; anything else is a ValueError."""
    try:
        return _evaluate(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, OverflowError, RecursionError) as error:
        raise ValueError(f"{expression!r} is no arithmetic expression: {error}") from error


def _evaluate(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    raise ValueError(f"{ast.unparse(node)!r} is no arithmetic")


def clean_number(text: str) -> str:
    """`60.0` -> `60`, `1,200` -> `1200`, `0.7999999999999999` -> `0.8`, `.50` -> `0.5`."""
    value = round(float(text.replace(",", "")), 6)
    return str(int(value)) if value == int(value) else f"{value:.6f}".rstrip("0")


def annotated_solution(answer: str) -> tuple[tuple[str, ...], str] | None:
    """Steps and answer of a GSM8K solution; None where it has no annotation or no `####`.

    >>> annotated_solution("She sells 16 - 3 = <<16-3=13>>13 eggs.\\n#### 13")
    (('<<16-3=13>>',), '13')
    """
    body, marker, final = answer.rpartition("####")
    steps = tuple(f"<<{step.strip()}>>" for step in _ANNOTATION.findall(body))
    if not marker or not steps:
        return None
    return steps, final.strip().replace(",", "")


def split_steps(steps: str | list[str]) -> tuple[str, ...]:
    """The steps of a solution that lists them, one a line, or writes them as prose, one a sentence; blank ones are left out.

    >>> split_steps("Ann has 3+4=7 apples. Then she eats 2, so 7-2=5 are left.")
    ('Ann has 3+4=7 apples.', 'Then she eats 2, so 7-2=5 are left.')

    Raises:
        ValueError: It is one sentence with several equations, whose steps can't be told apart.
    """
    if isinstance(steps, str):
        steps = re.findall(r"<<.*?>>", steps) or steps.splitlines()
    split = [step.strip() for step in steps if step.strip()]
    if len(split) == 1:
        split = _SENTENCE_END.split(split[0])
    if len(split) == 1 and len(_EQUATION.findall(split[0])) > 1 and "<<" not in split[0]:
        raise ValueError("holds several equations in one sentence: give the steps as a list, or one a line")
    return tuple(split)


def prose_solution(solution: str) -> tuple[tuple[str, ...], str] | None:
    """Steps and answer of a solution in prose with its equations in plain text; None where they cannot be trusted.

    Units and currencies are dropped. Every equation must hold, with no number longer than 4 decimals, and the last
    one must end in the answer.

    >>> prose_solution("Peeling: 180 carrots / 15 carrots/minute = 12 minutes\\n#### 12")
    (('<<180/15=12>>',), '12')
    """
    body, _, final = solution.rpartition("####")
    try:
        answer = clean_number(final)
    except ValueError:
        return None
    steps: list[str] = []
    for line in body.splitlines():
        for expression, value in _equations(line):
            step = _step(expression, value)
            if step is None:
                return None
            if step not in steps[-1:]:
                steps.append(step)
    if not steps or steps[-1].removesuffix(">>").rpartition("=")[2] != answer:
        return None
    return tuple(steps), answer


def _equations(line: str) -> list[tuple[str, str]]:
    """The pairs (expression, value) around the equal signs of a line; `%` is still in them."""
    segments = _HALF.sub("0.5", _UNKNOWN.sub("", _CURRENCY.sub("", line))).split("=")
    expressions = [_trailing_expression(segment) for segment in segments[:-1]]
    pairs = []
    for i, following in enumerate(segments[1:]):
        value = _VALUE.match(following)
        is_formula = i + 1 < len(expressions) and expressions[i + 1][1]  # the 7*8 of "x*y = 7*8 = 56" is no value
        if expressions[i][0] and value is not None and not is_formula:
            pairs.append((expressions[i][0], value[1].replace(" ", "")))
    return pairs


def _trailing_expression(text: str) -> tuple[str, bool]:
    """The longest arithmetic expression that a text ends in, free of its units, and whether it is all of the text.

    It is "" where no expression with an operator ends the text.
    """
    atoms = ["|"]  # numbers, operators and barriers "|"; the expression is what follows the last barrier
    after_number = False  # directly, without a blank
    for token in _TOKEN.finditer(text):
        kind, part = token.lastgroup, _SAME_AS.get(token[0], token[0])
        operand_before = atoms[-1] not in "+-*/(|"
        if kind == "number":
            atoms += ["|"] * operand_before + [clean_number(part)]
        elif part == "(":
            atoms += [("*" if after_number else "|")] * operand_before + ["("]
        elif kind == "operator" and operand_before and (part != "%" or after_number):
            atoms.append(part)
        elif kind != "blank" and not (kind == "word" and operand_before):  # a word behind a number is its unit
            atoms.append("|")
        after_number = kind == "number"
    before, _, expression = "".join(atoms).rpartition("|")
    if not re.search(r"[-+*/].*[\d)]%?$", expression):
        return "", False
    return _PLAIN_NUMBER_IN_PARENTHESES.sub(r"\1", expression), not before


def _step(expression: str, value: str) -> str | None:
    """`<<expression=value>>` if it holds, read with or without its percent signs; None if no reading holds."""
    result = clean_number(value.rstrip("%"))
    plain = expression.replace("%", "")
    readings = [plain]
    if "%" in expression and "%" in value:
        readings.append(f"{plain}/100")
    elif "%" in expression:
        readings.append(expression.replace("%", "/100"))
    elif "%" in value:
        readings.append(f"{plain}*100")
    for reading in readings:
        try:
            holds = abs(evaluate(reading) - float(result)) <= 1e-6 * max(1.0, abs(float(result)))
        except ValueError:
            return None
        if holds:
            decimals = re.findall(r"\.(\d+)", f"{reading}={result}")
            return None if max(map(len, decimals), default=0) > _MAX_DECIMALS else f"<<{reading}={result}>>"
    return None

"""The computation behind a written solution: which number of the question, result or constant every step takes.

    Ann has 16 eggs, eats 3 and sells the rest for $2 each.     <<16-3=13>>   <<13*2=26>>
            v0            v1                        v2            v0-v1        r0*v2

A problem becomes a template where this reading is the only one; every other problem is `Unmappable`, with the reason.
"""

import ast
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from datamodules.resampling.constants import constants_of_words
from datamodules.resampling.numbers import DIGITS, Number, find_numbers, fractions_of, write_question
from latent_tts.problems import ReasoningExample

_LEAF = re.compile(rf"({DIGITS})(%?)")
_FOLLOWS = re.compile(r"\b(?:other|remaining) (?:two|three|four|five|six|seven|eight|nine|ten|\d+)\b", re.IGNORECASE)
_HUNDREDTH = Fraction(1, 100)


class UnmappableError(Exception):
    """A problem whose numbers can't be changed; the message is the reason, in the same words for all of its sort."""


@dataclass(frozen=True)
class Variable:
    """A value of the question that may change: to any of `choices`, in units of its last decimal."""

    value: Fraction
    decimals: int
    choices: range
    hundredths: bool
    units: frozenset[str]


@dataclass(frozen=True)
class Leaf:
    """A number in a step: variable or result number `index`, times `factor`; a constant is its `factor` alone."""

    text: str
    kind: Literal["variable", "result", "constant"]
    index: int
    factor: Fraction

    def value(self, variables: Sequence[Fraction], results: Sequence[Fraction]) -> Fraction:
        if self.kind == "constant":
            return self.factor
        return self.factor * (variables if self.kind == "variable" else results)[self.index]


@dataclass(frozen=True)
class Step:
    """`texts[0] leaves[0] texts[1] leaves[1] ... = result`; in `tree` the constants are indices of leaves."""

    texts: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    tree: ast.expr
    result: str


@dataclass(frozen=True)
class Template:
    """A problem whose numbers can change.

    Equal numbers of the question are one variable: they stay equal, so it doesn't matter which of them a step takes.
    """

    example: ReasoningExample
    numbers: tuple[Number, ...]
    variables: tuple[Variable, ...]
    steps: tuple[Step, ...]

    @property
    def own_values(self) -> list[Fraction]:
        """The values that the variables have in the problem itself."""
        return [variable.value for variable in self.variables]

    def operations(self, variables: Sequence[Fraction]) -> list[list[Fraction]]:
        """The value of every operation of every step, the step's result last; ZeroDivisionError where there is none."""
        results: list[Fraction] = []
        values = []
        for step in self.steps:
            leaves = [leaf.value(variables, results) for leaf in step.leaves]
            values.append(operations(step.tree, leaves))
            results.append(values[-1][-1])
        return values

    def write(self, variables: Sequence[Fraction]) -> ReasoningExample:
        """The problem with these values in question, steps and answer; with its own values it is its own text."""
        new = {old.value: value for old, value in zip(self.variables, variables, strict=True)}
        values = [number.value if number.fixed else new[number.value] for number in self.numbers]
        results = [operations[-1] for operations in self.operations(variables)]
        steps = tuple(_write_step(step, variables, results, i) for i, step in enumerate(self.steps))
        answer = _write(self.example.answer, results[-1])
        return ReasoningExample(write_question(self.example.question, self.numbers, values), steps, answer)


def template_of(example: ReasoningExample) -> Template:
    """The template of a problem.

    Raises:
        UnmappableError: A step doesn't hold, or a number in it or in the question can be read in no way or in several.
    """
    if _FOLLOWS.search(example.question):
        raise UnmappableError("a number of the question follows from others")
    constants = constants_of_words(example.question)
    numbers = find_numbers(example.question, constants)
    constants |= fractions_of(example.question) | {number.value for number in numbers if number.fixed}
    numbers = [number.fix() if number.value in constants else number for number in numbers]
    variables = _variables([number for number in numbers if not number.fixed])
    if not variables:
        raise UnmappableError("no number of the question may change")
    reading = _Reading(variables, constants)
    for step in example.steps:
        reading.read(step)
    if reading.results[-1] != _value(example.answer):
        raise UnmappableError("the last result is not the answer")
    if len(reading.used("variable")) < len(variables):
        raise UnmappableError("a number of the question is not used")
    if len(reading.used("result")) < len(set(map(_computation, reading.steps[:-1]))):
        raise UnmappableError("a result is not used")  # only compared, or used in the writer's head
    return Template(example, tuple(numbers), tuple(variables), tuple(reading.steps))


def _variables(free: Sequence[Number]) -> list[Variable]:
    variables = []
    for value in dict.fromkeys(number.value for number in free):
        same = [number for number in free if number.value == value]
        if len({(number.decimals, number.hundredths) for number in same}) > 1:
            raise UnmappableError("equal numbers of the question are of different sorts")
        ranges = [number.choices for number in same]  # equal numbers are equally round: of one stride
        first, stop = max(r.start for r in ranges), min(r.stop for r in ranges)
        choices = range(first, stop, ranges[0].step)
        variables.append(
            Variable(value, same[0].decimals, choices, same[0].hundredths, frozenset(n.unit for n in same))
        )
    return variables


@dataclass
class _Reading:
    """The steps of a solution, read one after the other."""

    variables: Sequence[Variable]
    constants: frozenset[Fraction]
    steps: list[Step] = field(default_factory=list)
    results: list[Fraction] = field(default_factory=list)

    def read(self, text: str) -> None:
        expression, _, result = text.removeprefix("<<").removesuffix(">>").replace(" ", "").rpartition("=")
        leaves, texts, end = [], [], 0
        for match in _LEAF.finditer(expression):
            leaves.append(self._leaf(match))
            texts.append(expression[end : match.start()])
            end = match.end()
        texts.append(expression[end:])
        step = Step(tuple(texts), tuple(leaves), _tree(texts), result)
        value = _value(result)
        values = [variable.value for variable in self.variables]
        try:
            holds = operations(step.tree, [leaf.value(values, self.results) for leaf in leaves])[-1] == value
        except ZeroDivisionError:
            holds = False
        if not holds:
            raise UnmappableError("a step does not hold exactly")
        self.steps.append(step)
        self.results.append(value)

    def _leaf(self, match: re.Match[str]) -> Leaf:
        value = _value(match[1]) * (_HUNDREDTH if match[2] else 1)
        found = self._readings(match[0], value)
        if not found:
            raise UnmappableError("a number of a step is neither in the question nor a result")
        if len(found) > 1:
            raise UnmappableError("a number of a step can be read in several ways")
        return found[0]

    def _readings(self, text: str, value: Fraction) -> list[Leaf]:
        leaves = []
        for i, variable in enumerate(self.variables):
            for factor in (Fraction(1), _HUNDREDTH)[: 1 + variable.hundredths]:
                if variable.value * factor == value:
                    leaves.append(Leaf(text, "variable", i, factor))
        equal = [i for i, result in enumerate(self.results) if result == value]
        different = {_computation(self.steps[i]): i for i in equal}  # the same step may be written twice
        leaves += [Leaf(text, "result", i, Fraction(1)) for i in different.values()]
        if value in self.constants or (text.endswith("%") and value * 100 in self.constants):
            leaves.append(Leaf(text, "constant", 0, value))
        return leaves

    def used(self, kind: Literal["variable", "result"]) -> set[int]:
        return {leaf.index for step in self.steps for leaf in step.leaves if leaf.kind == kind}


def _computation(step: Step) -> Hashable:
    return step.texts, step.leaves


def operations(tree: ast.expr, leaves: Sequence[Fraction]) -> list[Fraction]:
    """The values of a tree's operations, operands before what they go into."""
    values: list[Fraction] = []

    def value_of(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            left, right = value_of(node.left), value_of(node.right)
            values.append(_OPERATORS[type(node.op)](left, right))
            return values[-1]
        assert isinstance(node, ast.Constant)
        return leaves[node.value]  # type: ignore[index]

    value_of(tree)
    return values


_OPERATORS = {
    ast.Add: Fraction.__add__,
    ast.Sub: Fraction.__sub__,
    ast.Mult: Fraction.__mul__,
    ast.Div: Fraction.__truediv__,
}


def _tree(texts: Sequence[str]) -> ast.expr:
    """The expression with indices in place of its numbers.

    Raises:
        UnmappableError: It is more than numbers, + - * / and parentheses.
    """
    indexed = "".join(f"{text}{i}" for i, text in enumerate(texts[:-1])) + texts[-1]
    try:
        tree = ast.parse(indexed, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise UnmappableError("a step is no plain arithmetic") from error
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.expr)]
    constants = [node for node in nodes if isinstance(node, ast.Constant)]
    plain = all(
        isinstance(node, ast.Constant) or (isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS)
        for node in nodes
    )
    if isinstance(tree, ast.Constant) or not plain or len(constants) != len(texts) - 1:
        raise UnmappableError("a step is no plain arithmetic")
    return tree


def _value(text: str) -> Fraction:
    try:
        return Fraction(text.replace(",", "").removeprefix("$"))
    except (ValueError, ZeroDivisionError) as error:
        raise UnmappableError("a result is no number") from error


def _write_step(step: Step, variables: Sequence[Fraction], results: Sequence[Fraction], index: int) -> str:
    pieces = [step.texts[0]]
    for leaf, text in zip(step.leaves, step.texts[1:], strict=True):
        pieces += [_write(leaf.text, leaf.value(variables, results)), text]
    return f"<<{''.join(pieces)}={_write(step.result, results[index])}>>"


def _write(old: str, value: Fraction) -> str:
    """A value in the place of the text `old`, which stays where it says the same."""
    percent = old.endswith("%")
    plain = _value(old.removesuffix("%")) * (_HUNDREDTH if percent else 1)
    if plain == value:
        return old
    return plain_decimal(value * 100 if percent else value) + "%" * percent


def plain_decimal(value: Fraction) -> str:
    """`5/2` -> `2.5`, `40` -> `40`; exact wherever 10 decimals are enough."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10f}".rstrip("0")

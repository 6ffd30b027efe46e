"""New problems from old ones: other numbers in the question, and with them in every step and the answer.

What may change is in the problem's template (`datamodules.resampling.templates`); here new numbers are drawn, so that the problem
stays as plausible as it was. `commands.resampling_report` tells how many problems of a source have a template.
"""

import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction
from hashlib import blake2b
from itertools import combinations

from datamodules.resampling.numbers import find_numbers
from datamodules.resampling.templates import Template, UnmappableError, template_of
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample, question_key

_COMPARES = re.compile(
    r"\b(?:most|least|fewest|highest|lowest|cheap\w+|largest|smallest|biggest|max\w*|minimum|enough|exceed\w*|limit\w*|up to"
    r"|over|better|best|winn\w+|whichever|first)\b",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"\ban?(?= \$?#)")
_SWEEPS = 2
_TRIES_PER_TEMPLATE = 3
_TRIES_PER_VARIABLE = 24
_MAX_GROWTH = 4
_MAX_ATTEMPTS = 100


class Resampled:
    """Example number i of a seed, for every i: a problem of `templates` with numbers drawn for it.

    It depends on nothing but the templates, the seed and i, so it is the same on every machine and in every epoch order.

    Args:
        templates: Templates to draw from, each as often as the others.
        seed: Seed of the problems.
        excluded: Questions (their `question_key`) that are never drawn.
    """

    def __init__(self, templates: Sequence[Template], seed: int, excluded: Collection[str] = ()) -> None:
        self.templates, self.seed, self.excluded = templates, seed, frozenset(excluded)

    def example(self, index: int) -> ReasoningExample:
        """Example number `index`: the first draw of its random stream that is not excluded."""
        rng = random.Random(blake2b(f"resampled/{self.seed}/{index}".encode(), digest_size=16).digest())
        for _ in range(_MAX_ATTEMPTS):
            template = rng.choice(self.templates)
            values = draw(template, rng)
            example = template.write(values)
            if values != template.own_values and not self._is_excluded(example.question):
                return example
        raise UserError(f"{_MAX_ATTEMPTS} problems drawn in a row are excluded ones: name a source with more templates")

    def _is_excluded(self, question: str) -> bool:
        return bool(self.excluded) and question_key(question) in self.excluded


def draw(template: Template, rng: random.Random) -> list[Fraction]:
    """New values of the template's variables, at least as plausible as its own.

    Starting from its own values, every variable in turn moves to the first of some random choices that leaves the whole
    computation plausible; so a variable that only fits as it is stays, and the draw always ends.
    """
    own_operations = template.operations(template.own_values)
    values = template.own_values
    for _ in range(_SWEEPS):
        for i in rng.sample(range(len(values)), len(values)):
            variable = template.variables[i]
            for choice in rng.sample(variable.choices, min(_TRIES_PER_VARIABLE, len(variable.choices))):
                tried = [*values[:i], Fraction(choice, 10**variable.decimals), *values[i + 1 :]]
                if is_plausible(template, own_operations, tried):
                    values = tried
                    break
    return values


def is_plausible(template: Template, own_operations: list[list[Fraction]], values: Sequence[Fraction]) -> bool:
    """Whether every value of the computation is of the same sort as it is with the template's own numbers.

    Whole numbers stay whole, positive ones positive, parts of one parts of one; nothing grows or shrinks to more than
    four times or less than a quarter; and a step's result needs no more decimals than it had. The larger of two numbers
    of the question in the same unit stays the larger, and so do all numbers where the question compares.
    """
    own_values = template.own_values
    if not all(map(_alike, own_values, values)):
        return False
    same_unit = [(i, j) for i, j in _pairs(values) if template.variables[i].units & template.variables[j].units]
    if not _same_order(own_values, values, same_unit):
        return False
    try:
        operations = template.operations(values)
    except ZeroDivisionError:
        return False
    for step, own, new in zip(template.steps, own_operations, operations, strict=True):
        if not all(map(_alike, own, new)) or (new[-1] * 10 ** len(step.result.partition(".")[2])).denominator != 1:
            return False
    if _COMPARES.search(template.example.question):
        own_values = [*own_values, *(own[-1] for own in own_operations)]
        all_values = [*values, *(new[-1] for new in operations)]
        return _same_order(own_values, all_values, _pairs(all_values))
    return True


def _pairs(values: Sequence[Fraction]) -> Iterable[tuple[int, int]]:
    return combinations(range(len(values)), 2)


def _same_order(own: Sequence[Fraction], new: Sequence[Fraction], pairs: Iterable[tuple[int, int]]) -> bool:
    return all((own[i] < own[j]) == (new[i] < new[j]) and (own[i] > own[j]) == (new[i] > new[j]) for i, j in pairs)


def _alike(own: Fraction, new: Fraction) -> bool:
    return (
        (own.denominator == 1) == (new.denominator == 1)
        and (own > 0) == (new > 0)
        and (own < 0) == (new < 0)
        and (abs(own) < 1) == (abs(new) < 1)
        and (own == 1) == (new == 1)
        and abs(own) <= _MAX_GROWTH * abs(new) <= _MAX_GROWTH**2 * abs(own)
    )


def template_key(question: str) -> str:
    """The question without numbers, articles before them, blanks and punctuation; equal where numbers alone differ."""
    text, end = "", 0
    for number in find_numbers(question, frozenset()):
        text, end = f"{text}{question[end : number.start]}#", number.end
    text = _ARTICLE.sub("", (text + question[end:]).lower())
    return re.sub(r"[^a-z#]", "", text)


def templates_of(
    examples: Iterable[ReasoningExample], excluded_questions: Iterable[str] = ()
) -> tuple[list[Template], Counter[str]]:
    """The templates of a source's problems, and how many problems have none, by reason.

    A problem that differs from an excluded question in nothing but its numbers gives no template.
    """
    excluded = set(map(template_key, excluded_questions))
    templates: list[Template] = []
    left_out: Counter[str] = Counter()
    for example in examples:
        try:
            if excluded and template_key(example.question) in excluded:
                raise UnmappableError("its question, with these or other numbers, is kept out")
            template = template_of(example)
            rng = random.Random(0)
            if all(draw(template, rng) == template.own_values for _ in range(_TRIES_PER_TEMPLATE)):
                raise UnmappableError("no other numbers are plausible")
        except UnmappableError as error:
            left_out[str(error)] += 1
        else:
            templates.append(template)
    return templates, left_out

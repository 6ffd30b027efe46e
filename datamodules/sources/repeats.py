"""Questions that come more than once: in a set, and in what is trained on and evaluated on."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from latent_tts.problems import Problem

_NOT_WORDS = re.compile(r"[^\w%$\u20ac\u00a3+*/=<>.,:-]+")
_APOSTROPHES = re.compile("['\u2018\u2019\u02bc`\u00b4\"\u201c\u201d]")
_END = re.compile(r"[.,:;?!\s-]+(?=\s|$)")


def question_key(question: str) -> str:
    """What two questions have in common that are the same but for case, blanks, quotation marks and stops.

    Numbers stay: 3.5 is not 35. A problem with other numbers is another one (`resampled:` looks for those by itself).

    >>> question_key(" Janet\u2019s  ducks lay 3.5 eggs ?") == question_key("Janet's ducks lay 3.5 eggs?")
    True
    """
    words = _NOT_WORDS.sub(" ", _APOSTROPHES.sub("", question.casefold()))
    return _END.sub(" ", words).strip()


def number_repeats(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Gives the second problem with the same question the id suffix `-2`, the third `-3`, and so on."""
    seen: Counter[str] = Counter()
    for problem in problems:
        seen[problem.problem_id] += 1
        count = seen[problem.problem_id]
        yield problem if count == 1 else replace(problem, problem_id=f"{problem.problem_id}-{count}")


def first_of_each(problems: Iterable[Problem]) -> Iterator[Problem]:
    """The problems without those that ask again what an earlier one asked (`question_key`)."""
    seen: set[str] = set()
    for problem in problems:
        key = question_key(problem.question)
        if key not in seen:
            seen.add(key)
            yield problem

"""Questions that come more than once in a set."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from latent_tts.problems import Problem, question_key


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

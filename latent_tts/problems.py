"""What flows through the house: a test problem with its gold answer, and a training example with its written steps."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

# Each is one character of a class: nothing is repeated, so that no text takes longer than its length.
_NO_WORD = re.compile(r"[^\w%$\u20ac\u00a3+*/=<>.,:-]")
_APOSTROPHES = re.compile("['\u2018\u2019\u02bc`\u00b4\"\u201c\u201d]")


@dataclass(frozen=True)
class Problem:
    """One test problem. `gold` is parsed where the problem is read, so a bad answer is found before a model runs."""

    problem_id: str
    question: str
    gold: float


@dataclass(frozen=True)
class ReasoningExample:
    """One training example: the question, its written steps such as `<<16-3-4=9>>`, and the answer such as `18`."""

    question: str
    steps: tuple[str, ...]
    answer: str


def problem_id_from_question(question: str) -> str:
    """16 hex characters that depend on nothing but the question's text (leading and trailing blanks aside).

    A source adds `-2`, `-3`, ... where it holds the same question more than once.
    """
    return blake2b(question.strip().encode(), digest_size=8).hexdigest()


def question_key(question: str) -> str:
    """What two questions have in common that are the same but for case, blanks, quotation marks and stops.

    Numbers stay: 3.5 is not 35. A problem with other numbers is another one (`resampled:` looks for those by itself).

    >>> question_key(" Janet\u2019s  ducks lay 3.5 eggs ?") == question_key("Janet's ducks lay 3.5 eggs?")
    True
    """
    words = _NO_WORD.sub(" ", _APOSTROPHES.sub("", question.casefold()))
    return " ".join(filter(None, (word.rstrip(".,:-") for word in words.split())))


def question_keys(questions: Iterable[str]) -> set[str]:
    """What keeps questions out of training, however they are written."""
    return set(map(question_key, questions))

"""What flows through the house: a test problem with its gold answer, and a training example with its written steps."""

from dataclasses import dataclass
from hashlib import blake2b


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

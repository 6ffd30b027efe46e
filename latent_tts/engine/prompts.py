"""From questions to the prompts that the engine starts from, or a sentence that says why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from latent_tts.backbones.base import LatentBackbone
from latent_tts.errors import UserError
from latent_tts.problems import problem_id_from_question


@dataclass(frozen=True)
class Prompt:
    """What one problem is asked with: its question, the id its random streams are derived from, and token ids."""

    question: str
    problem_id: str
    ids: list[int]


@dataclass(frozen=True)
class PromptRoom:
    """How long a question may be for one model; small enough to be handed to the worker processes of a loader.

    Attributes:
        model: What the model is called in a sentence.
        positions: Those it has; ``None`` where there is no end to them.
        beside: Positions of everything but the tokenized form: thoughts, answer, and what follows the form.
        tokenizer: The model's.
        form: What is tokenized of a prompt, with the field ``{question}``.
    """

    model: str
    positions: int | None
    beside: int
    tokenizer: PreTrainedTokenizerBase
    form: str

    @classmethod
    def of(cls, model: str, backbone: LatentBackbone, max_answer_tokens: int) -> PromptRoom:
        """That of the prompts that `make_prompts` takes."""
        form, after = backbone.tokenized_form()
        beside = after + _positions_beside(backbone, max_answer_tokens)
        return cls(model, backbone.max_positions, beside, backbone.tokenizer, form)

    def needed(self, question: str) -> int:
        """Positions that a question takes, to the end of its answer."""
        ids = self.tokenizer(self.form.replace("{question}", question), add_special_tokens=False)["input_ids"]
        return len(ids) + self.beside

    def lacks(self, question: str) -> bool:
        """Whether the model has too few positions for a question. Of a short one it is known without its tokens."""
        if self.positions is None or len(self.form.encode()) + len(question.encode()) + self.beside <= self.positions:
            return False  # a token is at least one byte of text
        return self.needed(question) > self.positions


def make_prompts(
    backbone: LatentBackbone, questions: Sequence[str], problem_ids: Sequence[str] | None, max_answer_tokens: int
) -> list[Prompt]:
    """Prompts of P questions; ids that are not given are derived from the questions' texts.

    Raises:
        UserError: No question, ids that don't fit, or a prompt that is empty or leaves no room for thoughts and answer.
    """
    if isinstance(questions, str):
        raise UserError("questions is one string: pass a list of questions, [question] for a single one.")
    questions = list(questions)
    if not questions:
        raise UserError("There is no question to roll out: pass at least one.")
    for question in questions:
        if not isinstance(question, str):
            raise UserError(f"A question must be text, got {question!r}.")
    if problem_ids is None:
        problem_ids = [problem_id_from_question(question) for question in questions]
    if len(problem_ids) != len(questions):
        raise UserError(f"{len(problem_ids)} problem ids were given for {len(questions)} questions: pass one each.")
    encoded = zip(questions, problem_ids, backbone.encode_prompts(questions), strict=True)
    prompts = [Prompt(question, problem_id, ids) for question, problem_id, ids in encoded]
    for prompt in prompts:
        _check_room(backbone, prompt, max_answer_tokens)
    return prompts


def _check_room(backbone: LatentBackbone, prompt: Prompt, max_answer_tokens: int) -> None:
    """Whether the model's positions reach to the end of the answer."""
    if not prompt.ids:
        raise UserError(
            f"The prompt of the question {prompt.question!r} has no token: there is nothing to think about."
        )
    needed, limit = len(prompt.ids) + _positions_beside(backbone, max_answer_tokens), backbone.max_positions
    if limit is not None and needed > limit:
        raise UserError(
            f"The prompt of {len(prompt.ids)} tokens that starts {prompt.question[:40]!r} leaves no room: with "
            f"{backbone.num_latents} latents and max_answer_tokens={max_answer_tokens} it needs {needed} of the model's "
            f"{limit} positions; shorten it or lower max_answer_tokens."
        )


def _positions_beside(backbone: LatentBackbone, max_answer_tokens: int) -> int:
    """Positions of the thoughts, the token that ends them, and the answer."""
    return backbone.num_latents + 1 + max_answer_tokens

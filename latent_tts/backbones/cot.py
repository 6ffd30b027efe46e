"""Written reasoning: a plain causal LM that writes its steps before its answer, as the baseline of the latent ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from latent_tts.backbones.base import LatentBackbone
from latent_tts.errors import UserError


class Cot(LatentBackbone):
    """No latent thought: what it decodes is its written steps and the answer.

    The last token of the prompt form stands where latent models have their end-of-thought token: it opens the writing. What
    follows the question in the form is tokenized by itself, so that this token is the same for every question.
    """

    kind = "cot"
    default_num_latents = 0
    min_latents = 0
    default_prompt_form = "{question}\n"
    special_tokens = ()

    def find_end_of_thought(self) -> int:
        return self._opening[-1]

    @property
    def _opening(self) -> list[int]:
        """Tokens of the prompt form after the question."""
        (ids,) = self.encode([self.prompt_form.partition("{question}")[2]])
        if not ids:
            raise UserError(
                f"The prompt form {self.prompt_form!r} of written reasoning must hold {{question}} and some text (a line break "
                "will do) after it."
            )
        return ids

    def tokenized_form(self) -> tuple[str, int]:
        return self.prompt_form.partition("{question}")[0] + "{question}", len(self._opening) - 1

    def encode_prompts(self, questions: Sequence[str]) -> list[list[int]]:
        """Token ids of the prompts but for their last token."""
        before, opening = self.prompt_form.partition("{question}")[0], self._opening[:-1]
        return [[*ids, *opening] for ids in self.encode([before + question for question in questions])]

    def next_latent(self, hidden: Tensor) -> Tensor:
        raise UserError("A cot backbone reasons in writing and has no latent thoughts: leave num_latents out.")

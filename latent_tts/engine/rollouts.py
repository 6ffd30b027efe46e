"""What comes out of the engine: answers, finished rows, and rollouts that know what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latent_tts.answers import parse_answer
from latent_tts.backbones.base import LatentBackbone
from latent_tts.engine.prompts import Prompt
from latent_tts.sampling import PromptSharing


@dataclass
class Answers:
    """Decoded answers of R rows.

    Attributes:
        ids: (R, A) int64, from the token after end-of-thought, with the stop token, padded.
        texts: R texts, without the stop token.
        answers: R parsed answers, ``None`` where there is none.
        num_tokens: (R,) int64, positions spent on each.
        finite: (R,) bool, false where a NaN or an infinity came up, in the thoughts or later: there is no answer.
    """

    ids: Tensor
    texts: list[str]
    answers: list[float | None]
    num_tokens: Tensor
    finite: Tensor


@dataclass
class Finished:
    """R rows at the end of their thinking: what they thought, and what they answered.

    Attributes:
        latents: (R, T, D), 0 where a row thought less.
        num_latents: (R,) int64.
        answers: What they answered.
    """

    latents: Tensor
    num_latents: Tensor
    answers: Answers


@dataclass
class Rollouts:
    """N rollouts of each of B problems.

    Attributes:
        questions: B questions, as they were asked.
        problem_ids: B ids, which the random streams were derived from.
        latents: (B, N, T, D), the embeddings fed at the latent positions, 0 where a rollout thought less.
        num_latents: (B, N) int64.
        finite: (B, N) bool, false where a NaN or an infinity came up: the thoughts from there on are 0, and there is no
            answer.
        answer_ids: (B, N, A) int64, from the token after end-of-thought, with the stop token, padded.
        texts: B lists of N decoded answers.
        answers: B lists of N parsed answers, ``None`` where there is none.
        token_steps: (B,) int64, positions that went through the model for a problem: its compute.
        shared_steps: (B,) int64, how many of these once for all its rollouts.
        rollout_steps: (B, N) int64, the others by rollout; None where only their sum is known.
    """

    questions: list[str]
    problem_ids: list[str]
    latents: Tensor
    num_latents: Tensor
    finite: Tensor
    answer_ids: Tensor
    texts: list[list[str]]
    answers: list[list[float | None]]
    token_steps: Tensor
    shared_steps: Tensor
    rollout_steps: Tensor | None = None

    @classmethod
    def of(
        cls, finished: Finished, prompts: Sequence[Prompt], sharing: PromptSharing, shared_thoughts: bool = False
    ) -> Rollouts:
        """Gives the rows of B problems, N neighbours each, the shape (B, N), and adds up what each problem has cost.

        Args:
            finished: B * N rows.
            prompts: B prompts.
            sharing: How much of a prompt was encoded once for its N rows.
            shared_thoughts: Whether their thoughts, which are the same then, were thought once.
        """
        size = len(finished.num_latents) // len(prompts)
        shape, answers = (len(prompts), size), finished.answers
        thoughts = finished.num_latents.view(shape).cpu()  # (B, N)
        shared = prompt_steps(prompts, 0, sharing) + (thoughts[:, 0] if shared_thoughts else 0)
        spent = answers.num_tokens.view(shape).cpu() + (0 if shared_thoughts else thoughts)
        own = (prompt_steps(prompts, 1, sharing) - prompt_steps(prompts, 0, sharing)).unsqueeze(1) + spent  # (B, N)
        starts = range(0, len(answers.texts), size)
        return cls(
            questions=[prompt.question for prompt in prompts],
            problem_ids=[prompt.problem_id for prompt in prompts],
            latents=finished.latents.view(*shape, *finished.latents.shape[1:]),
            num_latents=finished.num_latents.view(shape),
            finite=answers.finite.view(shape),
            answer_ids=answers.ids.view(*shape, -1),
            texts=[answers.texts[start : start + size] for start in starts],
            answers=[answers.answers[start : start + size] for start in starts],
            token_steps=shared + own.sum(dim=1),
            shared_steps=shared,
            rollout_steps=own,
        )

    def between(self, first: int, end: int) -> Rollouts:
        """Rollouts ``first`` to ``end`` (not included) of every problem, as if they alone had been drawn."""
        assert self.rollout_steps is not None, "what each rollout has cost is not known"
        some = slice(first, end)
        own = self.rollout_steps[:, some]
        return replace(
            self,
            latents=self.latents[:, some],
            num_latents=self.num_latents[:, some],
            finite=self.finite[:, some],
            answer_ids=self.answer_ids[:, some],
            texts=[texts[some] for texts in self.texts],
            answers=[answers[some] for answers in self.answers],
            token_steps=self.shared_steps + own.sum(dim=1),
            rollout_steps=own,
        )

    def of_problems(self, index: Sequence[int]) -> Rollouts:
        """The rollouts of some of the problems, by their places."""
        rows = torch.tensor(index)
        on_device = rows.to(self.latents.device)
        return Rollouts(
            questions=[self.questions[i] for i in index],
            problem_ids=[self.problem_ids[i] for i in index],
            latents=self.latents[on_device],
            num_latents=self.num_latents[on_device],
            finite=self.finite[on_device],
            answer_ids=self.answer_ids[on_device],
            texts=[self.texts[i] for i in index],
            answers=[self.answers[i] for i in index],
            token_steps=self.token_steps[rows],
            shared_steps=self.shared_steps[rows],
            rollout_steps=None if self.rollout_steps is None else self.rollout_steps[rows],
        )


def prompt_steps(prompts: Sequence[Prompt], num_rollouts: int, sharing: PromptSharing) -> Tensor:
    """Positions spent on the prompts of P problems with N rollouts each: (P,) int64."""
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
    shared = torch.tensor([sharing.num_shared(len(prompt.ids)) for prompt in prompts])
    return shared + num_rollouts * (lengths - shared)


def join_rollouts(parts: Sequence[Rollouts]) -> Rollouts:
    """The rollouts of the same problems, drawn a few at a time, as if they had been drawn at once.

    Args:
        parts: Rollouts 0 to i, i + 1 to j, and so on.
    """
    if len(parts) == 1:
        return parts[0]
    first, rows = parts[0], range(len(parts[0].questions))
    spent = torch.stack([part.token_steps - part.shared_steps for part in parts]).sum(dim=0)
    own = [part.rollout_steps for part in parts if part.rollout_steps is not None]
    return Rollouts(
        questions=first.questions,
        problem_ids=first.problem_ids,
        latents=torch.cat([part.latents for part in parts], dim=1),
        num_latents=torch.cat([part.num_latents for part in parts], dim=1),
        finite=torch.cat([part.finite for part in parts], dim=1),
        answer_ids=torch.cat([part.answer_ids for part in parts], dim=1),
        texts=[[text for part in parts for text in part.texts[i]] for i in rows],
        answers=[[answer for part in parts for answer in part.answers[i]] for i in rows],
        token_steps=first.shared_steps + spent,
        shared_steps=first.shared_steps,
        rollout_steps=torch.cat(own, dim=1) if len(own) == len(parts) else None,
    )


def read_answers(backbone: LatentBackbone, ids: Tensor, num_tokens: Tensor, finite: Tensor) -> Answers:
    """Texts and answers of token ids; each distinct row is decoded and parsed once, since rollouts often agree."""
    distinct, where = torch.unique(ids, dim=0, return_inverse=True)
    texts = backbone.tokenizer.batch_decode(
        _without_stop(distinct.tolist(), backbone.eos_token_ids), skip_special_tokens=True
    )
    read: list[tuple[str, float | None]] = [(text, parse_answer(text)) for text in texts]
    rows = [read[i] if ok else ("", None) for i, ok in zip(where.tolist(), finite.tolist(), strict=True)]
    return Answers(ids, [text for text, _ in rows], [answer for _, answer in rows], num_tokens, finite)


def _without_stop(rows: list[list[int]], stops: tuple[int, ...]) -> list[list[int]]:
    """Rows of token ids up to their first stop token; behind it there is only padding."""
    ends = [next((i for i, token in enumerate(row) if token in stops), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]

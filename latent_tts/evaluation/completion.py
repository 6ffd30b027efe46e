"""What a record has, and what a larger run adds to it: rollouts that follow on those there are, scores, searches.

The rollouts of a record are put back as they came out of the engine. Their latents are read where the run keeps them and thought
again where not: no answer is decoded and nothing but the thoughts computed, which are the same, as a rollout is a function of
(seed, problem, n).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.rollouts import Rollouts
from latent_tts.engine.state import ThoughtState
from latent_tts.evaluation.records import AnswerRecord, Record

Earlier = Callable[[str], Record | None]
"""The record that there is of a problem, by its id, judged by the gold answer of today."""


@dataclass(frozen=True)
class Have:
    """What a record holds already."""

    num_rollouts: int
    scored: bool
    searches: frozenset[str]
    written: bool

    @classmethod
    def of(cls, record: Record) -> Have:
        """What this one holds."""
        scored = record.rollouts[0].step_scores is not None
        return cls(len(record.rollouts), scored, frozenset(record.search), record.written is not None)


def restored_rollouts(records: Sequence[Record], latents: Tensor) -> Rollouts:
    """The rollouts of B records with their latents (B, N, T, D); token ids, which nobody asks for, are none."""
    device = latents.device
    counts = [[rollout.num_latents for rollout in record.rollouts] for record in records]
    finite = [[rollout.finite for rollout in record.rollouts] for record in records]
    return Rollouts(
        questions=[record.question for record in records],
        problem_ids=[record.problem_id for record in records],
        latents=latents,
        num_latents=torch.tensor(counts, device=device),
        finite=torch.tensor(finite, device=device),
        answer_ids=torch.zeros(*latents.shape[:2], 0, dtype=torch.long, device=device),
        texts=[[rollout.text for rollout in record.rollouts] for record in records],
        answers=[[rollout.answer for rollout in record.rollouts] for record in records],
        token_steps=torch.tensor([record.token_steps.rollouts for record in records]),
        shared_steps=torch.tensor([record.token_steps.rollouts_shared for record in records]),
    )


def restored_answers(records: Sequence[Record], answers: Sequence[AnswerRecord], steps: Sequence[int]) -> Rollouts:
    """One answer of each of B records, with the token steps it took, as rollouts without latents."""
    num = len(records)
    return Rollouts(
        questions=[record.question for record in records],
        problem_ids=[record.problem_id for record in records],
        latents=torch.zeros(num, 1, 0, 0),
        num_latents=torch.zeros(num, 1, dtype=torch.long),
        finite=torch.ones(num, 1, dtype=torch.bool),
        answer_ids=torch.zeros(num, 1, 0, dtype=torch.long),
        texts=[[answer.text] for answer in answers],
        answers=[[answer.answer] for answer in answers],
        token_steps=torch.tensor(list(steps)),
        shared_steps=torch.zeros(num, dtype=torch.long),
    )


@torch.inference_mode()
def think(engine: RolloutEngine, start: ThoughtState, num_rollouts: int) -> Tensor:
    """The latents (B, N, T, D) of the first N rollouts of every prompt; no answer is decoded.

    Raises:
        DoesNotFitError: There is no room for one rollout of every problem.
    """
    num_latents, num_problems = engine.backbone.num_latents, start.num_problems
    if not num_latents:
        return torch.zeros(num_problems, num_rollouts, 0, engine.backbone.hidden_size)

    def part(first: int, end: int) -> Tensor:
        state = engine.expand(start, end - first, first)
        while state.step < num_latents and not (engine.backbone.dynamic and bool(state.finished.all())):
            state = engine.expand(state)
        latents = pad(state.latents, (0, 0, 0, num_latents - state.latents.shape[1]))
        return latents.view(num_problems, end - first, *latents.shape[1:])

    return torch.cat(engine.parts.run(part, start, num_rollouts), dim=1)[:, :num_rollouts]

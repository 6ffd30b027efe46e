"""What was made of a batch of problems, as records: rollouts with answer and scores, whether they are right, and their cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from latent_tts.answers import AnswerRule, answers_equal
from latent_tts.engine.prompts import Prompt
from latent_tts.engine.rollouts import Rollouts
from latent_tts.evaluation.records import AnswerRecord, Record, RolloutRecord, SearchRecord, TokenSteps, rounded
from latent_tts.metrics.diversity import step_diversity
from latent_tts.problems import Problem
from latent_tts.search import SearchResult


@dataclass(frozen=True)
class Drawn:
    """What was made of a batch of B problems."""

    prompts: list[Prompt]
    rollouts: Rollouts
    greedy: Rollouts
    written: Rollouts | None
    scores: Tensor | None  # (B, N, T)
    found: dict[str, SearchResult]  # by Strategy.key


def make_record(problem: Problem, i: int, drawn: Drawn, rule: AnswerRule) -> Record:
    """The record of problem i of a batch, its answers judged by a rule; nothing is chosen yet."""
    greedy, written = drawn.greedy, drawn.written
    finite = drawn.rollouts.finite[i]  # (N,)
    latents, num_latents = drawn.rollouts.latents[i][finite], drawn.rollouts.num_latents[i][finite]
    per_step = step_diversity(latents, num_latents).tolist()
    return Record(
        problem_id=problem.problem_id,
        question=problem.question,
        gold=problem.gold,
        greedy=AnswerRecord(*_judged(problem, greedy.texts[i][0], greedy.answers[i][0], rule)),
        rollouts=_rollout_records(problem, i, drawn, rule),
        search=search_records(problem, i, drawn.found, rule),
        diversity=tuple(rounded([None if math.isnan(value) else value for value in per_step])),
        token_steps=_token_steps(i, drawn),
        chosen={},
        written=None if written is None else written_record(problem, i, written, rule),
    )


def search_records(
    problem: Problem, i: int, found: dict[str, SearchResult], rule: AnswerRule
) -> dict[str, SearchRecord]:
    """What searches have found for problem i, by their key."""
    return {
        key: SearchRecord(*_judged(problem, one.texts[i], one.answers[i], rule), int(one.token_steps[i]))
        for key, one in found.items()
    }


def written_record(problem: Problem, i: int, written: Rollouts, rule: AnswerRule) -> SearchRecord:
    """The written reasoning of problem i."""
    judged = _judged(problem, written.texts[i][0], written.answers[i][0], rule)
    return SearchRecord(*judged, int(written.token_steps[i]))


def _rollout_records(problem: Problem, i: int, drawn: Drawn, rule: AnswerRule) -> tuple[RolloutRecord, ...]:
    rollouts, num_latents = drawn.rollouts, drawn.rollouts.num_latents[i].tolist()
    scores = [None] * len(num_latents) if drawn.scores is None else drawn.scores[i].tolist()
    finite = rollouts.finite[i].tolist()
    parts = zip(rollouts.texts[i], rollouts.answers[i], num_latents, scores, finite, strict=True)
    return tuple(
        RolloutRecord(
            *_judged(problem, text, answer, rule),
            num_latents=length,
            step_scores=None if steps is None else tuple(rounded(steps[: length * whole])),
            finite=whole,
        )
        for text, answer, length, steps, whole in parts
    )


def _token_steps(i: int, drawn: Drawn) -> TokenSteps:
    """What is shared goes through a model once for all N rollouts: the prompt, as far as its pass is not random."""
    prompt, thoughts = len(drawn.prompts[i].ids), int(drawn.rollouts.num_latents[i].sum())
    scored = drawn.scores is not None
    return TokenSteps(
        rollouts=int(drawn.rollouts.token_steps[i]),
        rollouts_shared=int(drawn.rollouts.shared_steps[i]),
        reward=(prompt + thoughts) * scored,
        reward_shared=prompt * scored,
        greedy=int(drawn.greedy.token_steps[i]),
    )


def _judged(problem: Problem, text: str, answer: float | None, rule: AnswerRule) -> tuple[str, float | None, bool]:
    return text, answer, answers_equal(answer, problem.gold, rule)

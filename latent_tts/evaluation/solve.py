"""From questions to answers in one call, for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from latent_tts.aggregation import AGGREGATIONS, Aggregation
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.rollouts import Rollouts
from latent_tts.errors import UserError
from latent_tts.evaluation.strategies import Part, make_part
from latent_tts.reward import LatentRewardModel
from latent_tts.search import SEARCHES


@torch.inference_mode()
def solve(
    questions: Sequence[str],
    engine: RolloutEngine,
    reward_model: LatentRewardModel | None = None,
    strategy: Part = "weighted_voting",
    num_rollouts: int = 16,
    seed: int = 0,
) -> list[float | None]:
    """Answers questions by parallel test-time scaling.

    Args:
        questions: B questions, without the prompt form around them.
        engine: Draws the thoughts.
        reward_model: Scores them; majority_voting needs none.
        strategy: An aggregation (majority_voting, best_of_n, weighted_voting, hybrid) of `num_rollouts` rollouts, or a search
            (beam_search, particle_filtering) with a budget of its own; by name, or as {"name": "best_of_n", "reduction": "mean"}.
        num_rollouts: N, rollouts of each question.
        seed: Seed of every random draw; together with the question's text it decides the answer.

    Returns:
        B answers, None where no rollout has one.

    Raises:
        UserError: An unknown strategy, one that needs a reward model without one, or what the engine refuses.
    """
    if engine.parts.size is not None and len(questions) > 1:
        alone = [solve([one], engine, reward_model, strategy, num_rollouts, seed) for one in questions]
        return [answer for answers in alone for answer in answers]
    name = strategy if isinstance(strategy, str) else strategy.get("name")
    if name in SEARCHES:
        search = make_part(strategy, SEARCHES, "strategy")
        guide: Any = _required(reward_model, search.name) if search.needs_scores else None
        return search.search(engine, guide, questions, seed).answers
    if name not in AGGREGATIONS:
        raise UserError(f"There is no strategy {name!r}: choose from {', '.join([*AGGREGATIONS, *SEARCHES])}.")
    part = make_part(strategy, AGGREGATIONS, "strategy")
    scorer = _required(reward_model, part.name) if part.needs_scores else None
    return _aggregate(part, engine.rollout(questions, num_rollouts, seed), scorer, engine.parts.size)


def _required(reward_model: LatentRewardModel | None, name: str) -> LatentRewardModel:
    if reward_model is None:
        raise UserError(f"{name} needs step scores: give a reward model, or take strategy='majority_voting'.")
    return reward_model


def _aggregate(
    part: Aggregation, rollouts: Rollouts, reward_model: LatentRewardModel | None, rollouts_per_part: int | None
) -> list[float | None]:
    if reward_model is None:
        return [part.choose(answers, None, None).answer for answers in rollouts.answers]
    scores = reward_model.score(rollouts, rollouts_per_part=rollouts_per_part)
    mask = torch.arange(scores.shape[2], device=scores.device) < rollouts.num_latents.to(scores.device).unsqueeze(-1)
    mask &= rollouts.finite.to(scores.device).unsqueeze(-1)
    rows = zip(rollouts.answers, scores, mask, strict=True)
    return [part.choose(answers, own, real).answer for answers, own, real in rows]

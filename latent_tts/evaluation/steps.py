"""The steps of an evaluation that take a model: rollouts, greedy answers, scores, searches; each of them is one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.memory import FittingParts
from latent_tts.engine.rollouts import Rollouts
from latent_tts.engine.state import ThoughtState
from latent_tts.evaluation.clock import RolloutClock
from latent_tts.evaluation.controls import LatentControl
from latent_tts.problems import Problem
from latent_tts.reward import LatentRewardModel
from latent_tts.sampling import Deterministic, PromptSharing
from latent_tts.search import Search, SearchResult

R = TypeVar("R")


class Steps:
    """What is done with a batch of problems on the device.

    Args:
        engine: Draws the rollouts.
        reward_model: Scores them, and guides searches.
        clock: Told how long the scoring takes.
        seed: Seed of every random draw.
        control: Replaces the latents before the answers.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        reward_model: LatentRewardModel | None,
        clock: RolloutClock,
        seed: int,
        control: LatentControl | None = None,
    ) -> None:
        self.engine, self.reward_model, self.clock, self.seed, self.control = engine, reward_model, clock, seed, control
        self.greedy_engine = RolloutEngine(engine.backbone, Deterministic(), engine.max_answer_tokens)
        self._rollout_parts = FittingParts("rollouts of one problem")

    def start(self, problems: Sequence[Problem]) -> ThoughtState:
        """The encoded prompts, before the first thought."""
        return self._start(self.engine, problems)

    def rollouts(self, start: ThoughtState, problems: Sequence[Problem], number: int, first: int = 0) -> Rollouts:
        """Of every problem the rollouts `first` to `first + number`."""
        return self._draw(self.engine, start, problems, number, first)

    def greedy(self, start: ThoughtState, problems: Sequence[Problem]) -> Rollouts:
        """The answers without sampling, from the prompts of the rollouts where their pass was not random."""
        if self.engine.sampler.prompt_sharing is not PromptSharing.ALL:
            start = self._start(self.greedy_engine, problems)
        return self._draw(self.greedy_engine, start, problems, 1)

    def scores(self, problems: Sequence[Problem], rollouts: Rollouts) -> Tensor | None:
        """Step scores (B, N, T), on the CPU; None without a reward model."""
        model, latents, num_latents = self.reward_model, rollouts.latents, rollouts.num_latents
        if model is None:
            return None
        questions, per_part = [problem.question for problem in problems], self.engine.parts.size
        with self.clock.scoring():
            if per_part is not None:
                return model.score(questions, latents, num_latents, per_part).cpu()
            parts = self._over_rollouts(
                lambda first, end: model.score(questions, latents[:, first:end], num_latents[:, first:end]),
                len(questions),
                latents.shape[1],
            )
            return torch.cat(parts, dim=1).cpu()

    def search(
        self,
        problems: Sequence[Problem],
        start: ThoughtState,
        searches: dict[str, Search],
        drawn: Rollouts | None = None,
    ) -> dict[str, SearchResult]:
        """What each search finds, by its key; those that can begin with the rollouts that are drawn."""
        questions, ids = [problem.question for problem in problems], [problem.problem_id for problem in problems]
        scorer: Any = self.reward_model  # None only where no search needs one
        return {
            key: search.search(self.engine, scorer, questions, self.seed, ids, start, drawn)
            for key, search in searches.items()
        }

    def _start(self, engine: RolloutEngine, problems: Sequence[Problem]) -> ThoughtState:
        questions, ids = [problem.question for problem in problems], [problem.problem_id for problem in problems]
        return engine.start(questions, self.seed, ids)

    def _draw(
        self, engine: RolloutEngine, start: ThoughtState, problems: Sequence[Problem], number: int, first: int = 0
    ) -> Rollouts:
        if self.control is None:
            return engine.rollout_from(start, number, first)
        return self.control.rollouts(engine, start, problems, number, self.seed)

    def _over_rollouts(self, work: Callable[[int, int], R], num_problems: int, num_rollouts: int) -> list[R]:
        """Results of work on all N rollouts, or on some at a time where those of a single problem do not fit in memory."""
        return self._rollout_parts.run(work, num_rollouts) if num_problems == 1 else [work(0, num_rollouts)]

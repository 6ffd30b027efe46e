"""Particle filtering (sequential Monte-Carlo) over latent thoughts: N rollouts whose unlikely members make room.

    start          N particles draw their first thought, each with weight 1
    every step     weigh the particles by the scores of their thoughts; where the effective sample size
                   (sum w)^2 / sum w^2 falls below ``threshold`` * N, resample: N particles are drawn by weight, with
                   replacement, and weigh 1 again
    after step T   the particles answer; the answer that gathers most weight wins

The particles with their weights then stand for the distribution p(h) * exp(score(h) / temperature), where p is how
the sampler draws thoughts: voting by weight is voting under that distribution, and at a high temperature it is
majority voting over plain rollouts.

What a step score is decides the weight of a step. As a ``potential`` r_t is the logarithm of what the whole prefix
h_1..h_t is worth, so a step multiplies the weight by exp((r_t - r_(t-1)) / temperature), and the product over the
steps is exp(r_T / temperature). As a ``reward`` r_t is the contribution of step t alone, the factor is exp(r_t /
temperature), and the product is that of the sum of scores, the order that best-of-N ranks by. ``potential`` is the
default because of how LatentRM is trained: its softmax over the rollouts of a problem at one step is fitted to the
Monte-Carlo values of the prefixes, so exp(r_t) estimates the value of the prefix up to a factor that the particles of
a problem share, which the weights cancel. Adding such scores up would count the evidence of the first thoughts T
times.

Resampling is systematic: one uniform number u per problem and step, a function of the problem's key, and the
particles at the places (u + i) / N of the cumulated weights. A particle of weight share w has N * w copies on average
and never more than one more or less. Copies get random streams of their own; problems that are not resampled keep
theirs. A particle that has stopped thinking (CoLaR) keeps its weight, and copies of it stay alike.

Cost per problem, with additive noise: prompt + N * T and N answers in the backbone, prompt + N * T in the reward
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from latent_tts.aggregation.base import Named, answer_classes
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.rollouts import Rollouts
from latent_tts.engine.state import ThoughtState
from latent_tts.errors import UserError
from latent_tts.search.base import ScoredThoughts, SearchResult, StepScorer
from latent_tts.seeding import fold_in, uniform, widest_float

StepScoreMeaning = Literal["potential", "reward"]
Final = Literal["vote", "best"]

_RESAMPLING_SALT = 1 << 42  # apart from the small numbers that steps, children and sites are folded in with
_TIE = 1e-9


@dataclass(frozen=True)
class ParticleFiltering(Named):
    """Sequential Monte-Carlo with the reward model's scores as weights; see the module's docstring."""

    num_particles: int = 16
    """N."""
    temperature: float = 1.0
    """Scores are divided by it; above 0. High: majority voting over plain rollouts; low: the best-scored survive."""
    threshold: float = 0.5
    """Share of N below which the effective sample size calls for resampling: 0 never, 1 whenever weights differ."""
    scores: StepScoreMeaning = "potential"
    """What a step score is: the log-value of the prefix (`potential`), or the contribution of its step (`reward`)."""
    final: Final = "vote"
    """Who answers: the particles, which `vote` by weight, or the one of the `best` weight; the lower wins ties."""

    family = "particle_filtering"
    label = "particle filtering"

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise UserError(f"particle filtering has num_particles = {self.num_particles}: it must be at least 1")
        if not self.temperature > 0:
            raise UserError(f"particle filtering has temperature {self.temperature}: it must be above 0")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"particle filtering has threshold {self.threshold}: it is a share, between 0 and 1")
        for option, choices in (("scores", get_args(StepScoreMeaning)), ("final", get_args(Final))):
            if getattr(self, option) not in choices:
                raise UserError(
                    f"particle filtering has {option} {getattr(self, option)!r}: use {' or '.join(choices)}"
                )

    @property
    def options(self) -> tuple[str, ...]:
        """See `Named.options`."""
        differences = {
            self.scores: self.scores != "potential",
            self.final: self.final != "vote",
            f"t{self.temperature:g}": self.temperature != 1.0,
            f"ess{self.threshold:g}": self.threshold != 0.5,
        }
        return tuple(word for word, differs in differences.items() if differs)

    @property
    def budget(self) -> str:
        """The number of particles."""
        return str(self.num_particles)

    @torch.inference_mode()
    def search(
        self,
        engine: RolloutEngine,
        reward_model: StepScorer,
        questions: Sequence[str],
        seed: int = 0,
        problem_ids: Sequence[str] | None = None,
        start: ThoughtState | None = None,
        drawn: Rollouts | None = None,
    ) -> SearchResult:
        """See `Search.search`."""
        rows = ScoredThoughts(engine, reward_model, questions, self.num_particles, seed, problem_ids, start)
        log_weights = self._step_log_weights(rows)  # (P, N)
        while not rows.done:
            log_weights = self._resample(rows, log_weights)
            rows.think()
            log_weights = log_weights + self._step_log_weights(rows)
        return self._choose(rows, log_weights)

    def _step_log_weights(self, rows: ScoredThoughts) -> Tensor:
        """Logarithms of what the latest step multiplies the weights by, (P, N)."""
        step = rows.scores[:, -1]
        if self.scores == "potential" and rows.scores.shape[1] > 1:
            step = step - rows.scores[:, -2]
        step = step.masked_fill(rows.state.finished, 0.0) / self.temperature
        return _without_lost(rows.grouped(step), rows.grouped(rows.state.finite))

    def _resample(self, rows: ScoredThoughts, log_weights: Tensor) -> Tensor:
        """Resamples the problems whose effective sample size is too small; their weights become 1."""
        weights = log_weights.softmax(dim=1)
        due = effective_sample_size(weights) < self.threshold * self.num_particles - 1e-6  # (P,)
        if not bool(due.any()):
            return log_weights
        draws = uniform(fold_in(fold_in(rows.keys, _RESAMPLING_SALT), rows.state.step), ())  # (P,)
        stay = torch.arange(self.num_particles, device=weights.device)
        ancestors = torch.where(due.unsqueeze(1), systematic_resampling(weights, draws), stay)
        first_row = torch.arange(len(ancestors), device=weights.device).unsqueeze(1) * self.num_particles
        rows.select(first_row + ancestors)
        rows.rekey(_RESAMPLING_SALT + 1, where=due)
        return log_weights.masked_fill(due.unsqueeze(1), 0.0)

    def _choose(self, rows: ScoredThoughts, log_weights: Tensor) -> SearchResult:
        index = torch.arange(rows.num_rows, device=log_weights.device).view(log_weights.shape)
        answered = rows.answer(index)
        weights = log_weights.softmax(dim=1).cpu().numpy()
        chosen, shares = [], []
        for problem, own in enumerate(weights):
            first = problem * self.num_particles
            classes, _ = answer_classes(answered.answers[first : first + self.num_particles])
            slot, share = self._pick(classes, own)
            chosen.append(first + slot)
            shares.append(share)
        picked = torch.tensor(chosen, device=log_weights.device)
        return rows.result(picked, torch.tensor(shares, dtype=torch.float64), [answered.texts[row] for row in chosen])

    def _pick(self, classes: np.ndarray, weights: np.ndarray) -> tuple[int, float]:
        """The particle that stands for the choice, and the weight behind the choice.

        Args:
            classes: (N,) number of each particle's answer, in order of appearance, -1 where it has none.
            weights: (N,) shares.
        """
        voters = classes >= 0
        if self.final == "best" or not voters.any():
            slot = _heaviest(weights)
            return slot, float(weights[slot])
        gathered = np.bincount(classes[voters], weights=weights[voters])
        winner = _heaviest(gathered)
        slot = _heaviest(np.where(classes == winner, weights, -1.0))
        return slot, float(gathered[winner])


def effective_sample_size(weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2: how many equal weights would vary as little. (..., N) to (...)."""
    return weights.sum(dim=-1).square() / weights.square().sum(dim=-1)


def systematic_resampling(weights: Tensor, draws: Tensor) -> Tensor:
    """Ancestors of N new particles, in ascending order.

    Args:
        weights: (P, N) not negative, of any sum above 0.
        draws: (P,) uniform numbers in (0, 1).

    Returns:
        (P, N) int64: the particle in whose part of the cumulated weights (u + i) / N falls, for i = 0 .. N - 1.
    """
    count = weights.shape[1]
    cumulated = weights.to(widest_float(weights.device)).cumsum(dim=1)
    places = (draws.to(cumulated).unsqueeze(1) + torch.arange(count, device=weights.device)) / count * cumulated[:, -1:]
    return torch.searchsorted(cumulated, places, right=True).clamp_(max=count - 1)


def _without_lost(log_weights: Tensor, finite: Tensor) -> Tensor:
    """No weight for particles in which a NaN or an infinity came up, unless all of a problem's are lost: (P, N) each."""
    lost = ~finite & finite.any(dim=1, keepdim=True)
    return log_weights.masked_fill(lost, -torch.inf)


def _heaviest(weights: np.ndarray) -> int:
    """The first of the largest, where weights that agree in nine digits count as equal."""
    return int((weights >= weights.max() * (1 - _TIE)).argmax())

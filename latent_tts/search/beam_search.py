"""Beam search over latent thoughts: keep the B prefixes with the best scores, draw C next thoughts from each.

    start          B * C first thoughts (so that every step has the same budget)
    every step     rank the rows by the scores of their thoughts so far; keep the best B; draw C children from each
    after step T   rank once more; the best row answers (or the best B vote)

Ties: among equal scores the lower row wins, and rows are in the order (rank of the parent, number of the child).
Duplicates, siblings with bitwise equal thoughts (all of them under a sampler without randomness; children of a row
that has stopped), are kept once: the first one. The others take part in nothing and cost nothing; they fill the beam
where fewer than B different rows are left. A row that has stopped thinking (CoLaR) keeps its scores and its place in
the ranking. With a beam as wide as the level (B >= C^(T-1) and ``num_first`` = C) this is exhaustive search of the
tree of draws.

Cost per problem, with additive noise: prompt + (T - 1) * B + the best row's last thought and answer in the backbone
(a parent is fed once for its C children; with dropout each child runs its own pass: B * C), prompt + T * B * C in the
reward model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from latent_tts.aggregation import MajorityVoting, Named, StepReduction, reduce_step_scores
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.rollouts import Rollouts
from latent_tts.engine.state import ThoughtState
from latent_tts.errors import UserError
from latent_tts.search.base import ScoredThoughts, SearchResult, StepScorer

Final = Literal["best", "vote"]


@dataclass(frozen=True)
class BeamSearch(Named):
    """Reward-guided beam search; see the module's docstring."""

    num_beams: int = 4
    """B, rows kept after each step."""
    num_candidates: int = 4
    """C, children of each row kept."""
    reduction: StepReduction = "sum"
    """How the step scores so far become one score: `sum` (the cumulative score), `last`, `mean`, `min`, `product`."""
    final: Final = "best"
    """Who answers: the `best` row, or the best B rows, which `vote` (the best-ranked wins ties)."""
    num_first: int | None = None
    """First thoughts drawn; B * C where it is left out."""

    family = "beam_search"
    label = "beam search"

    def __post_init__(self) -> None:
        for option in ("num_beams", "num_candidates", "num_first"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UserError(f"beam search has {option} = {value}: it must be at least 1")
        for option, choices in (("reduction", get_args(StepReduction)), ("final", get_args(Final))):
            if getattr(self, option) not in choices:
                raise UserError(f"beam search has {option} {getattr(self, option)!r}: use one of {', '.join(choices)}")

    @property
    def options(self) -> tuple[str, ...]:
        """See `Named.options`."""
        final = (self.final,) * (self.final != "best")
        first = (f"first{self.num_first}",) * (self.num_first is not None)
        return (self.reduction,) * (self.reduction != "sum") + final + first

    @property
    def budget(self) -> str:
        """`4x4`: beams and candidates."""
        return f"{self.num_beams}x{self.num_candidates}"

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
        first = self.num_first or self.num_beams * self.num_candidates
        rows = ScoredThoughts(engine, reward_model, questions, first, seed, problem_ids, start, distinct=True)
        while not rows.done:
            rows.select(self._best(rows, self.num_beams))
            rows.think(self.num_candidates)
        return self._choose(rows)

    def _scores(self, rows: ScoredThoughts) -> Tensor:
        """(P, G) float64; -inf for a row that stopped before its first thought."""
        return reduce_step_scores(rows.grouped(rows.scores), rows.grouped(rows.score_mask), self.reduction)

    def _best(self, rows: ScoredThoughts, count: int) -> Tensor:
        """Numbers of the best rows of each problem, best first: (P, min(count, G))."""
        scores, counted = self._scores(rows), rows.grouped(rows.counted)
        order = scores.argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, counted.gather(1, order).int().argsort(dim=1, descending=True, stable=True))
        first_row = torch.arange(len(order), device=order.device).unsqueeze(1) * order.shape[1]
        return first_row + order[:, :count]

    def _choose(self, rows: ScoredThoughts) -> SearchResult:
        best = self._best(rows, self.num_beams if self.final == "vote" else 1)  # (P, B')
        answered = rows.answer(best)
        counted = rows.counted[best].tolist()
        chosen, width = [], best.shape[1]
        for problem, voters in enumerate(counted):
            answers = answered.answers[problem * width : problem * width + sum(voters)]  # duplicates come last
            chosen.append(MajorityVoting().choose(answers).index or 0)
        picked = best[torch.arange(len(best), device=best.device), torch.tensor(chosen, device=best.device)]
        texts = [answered.texts[problem * width + slot] for problem, slot in enumerate(chosen)]
        return rows.result(picked, self._scores(rows).flatten()[picked], texts)

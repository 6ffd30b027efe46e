"""Adaptive rollouts: drawn in portions, until the vote of a problem is settled or its budget is spent.

    every round    each problem that is left draws the next rollouts, `portion` of them
                   a problem whose vote is settled, or that may spend no more, leaves with the majority of what it drew

The stopping rule is that of `latent_tts.aggregation.adaptive_voting`, and rollout n of a problem is rollout n of every run: what
is found is what the rule finds when it is replayed on rollouts that were drawn at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from latent_tts.aggregation import MajorityVoting, Named
from latent_tts.aggregation.adaptive_voting import StoppingRule
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.rollouts import Rollouts, join_rollouts
from latent_tts.engine.state import ThoughtState
from latent_tts.errors import UserError
from latent_tts.search.base import SearchResult, StepScorer


@dataclass(frozen=True)
class AdaptiveRollouts(StoppingRule, Named):
    """See the module's docstring; needs no scores.

    Raises:
        UserError: An option is out of its range.
    """

    max_rollouts: int = 64
    """N, rollouts that a problem may draw."""
    max_token_steps: int | None = None
    """Positions through the backbone after which a problem draws no further portion; None sets no limit."""

    family = "adaptive_rollouts"
    label = "adaptive rollouts"
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_rollouts < 1:
            raise UserError(f"max_rollouts must be at least 1, got {self.max_rollouts}.")
        if self.max_token_steps is not None and self.max_token_steps < 1:
            raise UserError(
                f"max_token_steps must be at least 1, got {self.max_token_steps}; leave it out for no limit."
            )

    @property
    def options(self) -> tuple[str, ...]:
        """What differs from the defaults."""
        limit = () if self.max_token_steps is None else (f"tokens{self.max_token_steps}",)
        return super().options + limit

    @property
    def budget(self) -> str:
        """See `Search.budget`."""
        return str(self.max_rollouts)

    @torch.inference_mode()
    def search(
        self,
        engine: RolloutEngine,
        reward_model: StepScorer | None,
        questions: Sequence[str],
        seed: int = 0,
        problem_ids: Sequence[str] | None = None,
        start: ThoughtState | None = None,
        drawn: Rollouts | None = None,
    ) -> SearchResult:
        """See `Search.search`; the reward model is not asked."""
        state = engine.start(questions, seed, problem_ids) if start is None else start
        found: list[SearchResult | None] = [None] * state.num_problems
        left, seen = list(range(state.num_problems)), None
        while left:
            seen = self._seen_on(engine, state, seen, drawn)
            done = [i for i in range(len(left)) if self._ends(seen, i)]
            for i in done:
                found[left[i]] = _majority(seen, i)
            going = [i for i in range(len(left)) if i not in set(done)]
            if going:
                state, seen = state.select(torch.tensor(going).unsqueeze(1)), seen.of_problems(going)
                drawn = None if drawn is None else drawn.of_problems(going)
            left = [left[i] for i in going]
        return _joined([one for one in found if one is not None])

    def _seen_on(
        self, engine: RolloutEngine, state: ThoughtState, seen: Rollouts | None, drawn: Rollouts | None
    ) -> Rollouts:
        """The rollouts seen, and the next portion: of those that are drawn already as far as they go, then new ones."""
        first = 0 if seen is None else len(seen.texts[0])
        end = min(first + self.portion, self.max_rollouts)
        there = first if drawn is None else min(end, max(first, len(drawn.texts[0])))
        parts = [] if seen is None else [seen]
        if drawn is not None and there > first:
            parts.append(drawn.between(first, there))
        if end > there:
            parts.append(engine.rollout_from(state, end - there, there))
        return join_rollouts(parts)

    def _ends(self, seen: Rollouts, i: int) -> bool:
        spent = self.max_token_steps is not None and int(seen.token_steps[i]) >= self.max_token_steps
        return spent or len(seen.texts[i]) == self.max_rollouts or self.settled(seen.answers[i])


def _majority(drawn: Rollouts, i: int) -> SearchResult:
    """What the vote of problem i gives, and the share of votes that its answer has."""
    chosen = MajorityVoting().choose(drawn.answers[i])
    row, votes = chosen.index or 0, list((chosen.weights or {}).values())
    return SearchResult(
        answers=[chosen.answer],
        texts=[drawn.texts[i][row]],
        scores=torch.tensor([max(votes, default=0.0) / max(sum(votes), 1.0)], dtype=torch.float64),
        latents=drawn.latents[i, row].unsqueeze(0),
        num_latents=drawn.num_latents[i, row].unsqueeze(0),
        backbone_steps=drawn.token_steps[i : i + 1],
        reward_steps=torch.zeros(1, dtype=torch.int64),
    )


def _joined(results: Sequence[SearchResult]) -> SearchResult:
    return SearchResult(
        answers=[answer for one in results for answer in one.answers],
        texts=[text for one in results for text in one.texts],
        scores=torch.cat([one.scores for one in results]),
        latents=torch.cat([one.latents for one in results]),
        num_latents=torch.cat([one.num_latents for one in results]),
        backbone_steps=torch.cat([one.backbone_steps for one in results]),
        reward_steps=torch.cat([one.reward_steps for one in results]),
    )

"""What every search shares: the result, the interface, and rows that think and are scored step by step.

A search spends a budget of latent steps on the thoughts that a reward model likes. It reads no gold answer. What it
finds for a problem is a function of (seed, problem id) and of the scores: neither the batch nor the order of the
problems enters, beyond the last bits of floating-point sums (which can only matter where two scores are as close as
that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from latent_tts.answers import parse_answer
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.rollouts import Answers, Rollouts
from latent_tts.engine.state import ThoughtState
from latent_tts.errors import UserError
from latent_tts.seeding import widest_float


@dataclass(frozen=True)
class SearchResult:
    """What a search found for each of P problems."""

    answers: list[float | None]
    """P answers, None where the chosen text has none."""
    texts: list[str]
    """P decoded answers: of the row that stands for the choice."""
    scores: Tensor
    """(P,) float64, how the choice ranked: the score of the best beam, or the share of weight of the chosen answer."""
    latents: Tensor
    """(P, T, D) thoughts of the row that stands for the choice, 0 where it thought less."""
    num_latents: Tensor
    """(P,) int64."""
    backbone_steps: Tensor
    """(P,) int64, positions that went through the backbone."""
    reward_steps: Tensor
    """(P,) int64, positions that went through the reward model."""

    @property
    def token_steps(self) -> Tensor:
        """(P,) int64, positions that went through either model: the budget in which strategies are compared."""
        return self.backbone_steps + self.reward_steps


class StepScorer(Protocol):
    """A model that scores thoughts as they come; `LatentRewardModel` is one.

    Its state has R rows, those of a problem contiguous, the tokens of each prompt as ``prompt_lengths`` (P,), and
    ``select(index)`` with row numbers (P, G) to keep, repeat and reorder rows.
    """

    def start(self, questions: Sequence[str]) -> Any:
        """The state before the first thought, one row a problem."""

    def step(self, state: Any, latents: Tensor, real: Tensor | None = None) -> tuple[Any, Tensor]:
        """Takes the next thought of every row, (R, D); the new state, and the scores of the prefixes, (R,)."""


class Search(Protocol):
    """One way to spend a budget of latent steps under the eyes of a reward model; a class of it is `Named`."""

    family: ClassVar[str]
    label: ClassVar[str]
    needs_scores: ClassVar[bool]
    """Whether it is guided by a reward model."""

    @property
    def options(self) -> tuple[str, ...]:
        """See `Named`."""

    @property
    def name(self) -> str:
        """See `Named`."""

    @property
    def budget(self) -> str:
        """What it may spend, as results name it: `4x4`."""

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
        """Finds an answer to every question.

        Args:
            engine: Its sampler draws the thoughts.
            reward_model: Scores them.
            questions: P questions, without the prompt form around them.
            seed: Together with the problem id it decides every random draw.
            problem_ids: P ids; ``None`` derives each from its question's text.
            start: What ``engine.start`` made of them, where the prompts have been encoded already.
            drawn: The first rollouts of these problems, where they have been drawn already; a search by rollouts takes them over,
                and counts what they have cost.
        """


class ScoredThoughts:
    """R = P * G rows that think with an engine and are scored by a reward model, with the bill of each problem.

    Args:
        num_rows: G to begin with.
        distinct: Whether siblings with the same thoughts are counted once.

    Attributes:
        keys: (P,) int64, the random streams of the problems, from which those of the rows descend.
        state: The rows of the engine.
        scores: (R, t) step scores, float64 where the device has it, 0 where a row had stopped.
        counted: (R,) bool, rows that are part of the search; the others only fill up the rectangle and cost nothing.
        backbone_steps, reward_steps: (P,) int64, positions so far.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        scorer: StepScorer,
        questions: Sequence[str],
        num_rows: int,
        seed: int,
        problem_ids: Sequence[str] | None,
        start: ThoughtState | None = None,
        distinct: bool = False,
    ) -> None:
        start = engine.start(questions, seed, problem_ids) if start is None else start
        self.engine, self.scorer, self.keys, self.distinct = engine, scorer, start.keys, distinct
        self.state: ThoughtState = engine.expand(start, num_rows)
        rewards = scorer.start(questions)
        self.backbone_steps = engine.prompt_steps(start.prompts, num_rows)
        self.reward_steps = rewards.prompt_lengths.cpu().long()
        problems = torch.arange(len(start.prompts), device=self.device)
        self._rewards = rewards.select(problems.unsqueeze(1).expand(-1, num_rows))
        self.scores = torch.empty(self.num_rows, 0, dtype=widest_float(self.device), device=self.device)
        self.counted = torch.ones(self.num_rows, dtype=torch.bool, device=self.device)
        self._score(num_siblings=num_rows)

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def num_rows(self) -> int:
        return self.state.num_rows

    @property
    def done(self) -> bool:
        """Whether no row has a thought left to think."""
        backbone = self.engine.backbone
        return self.state.step >= backbone.num_latents or (backbone.dynamic and bool(self.state.finished.all()))

    @property
    def score_mask(self) -> Tensor:
        """(R, t) bool, true where a row had a thought."""
        return torch.arange(self.state.step, device=self.device) < self.state.num_latents.unsqueeze(1)

    def grouped(self, rows: Tensor) -> Tensor:
        """(R, ...) to (P, G, ...)."""
        return rows.view(self.state.num_problems, -1, *rows.shape[1:])

    def think(self, num_children: int | None = None) -> None:
        """Every row thinks one more thought (see ``RolloutEngine.expand``), which is scored."""
        self._bill_backbone(num_children or 1 if self.engine.sampler.prompt_sharing.random_pass else 1)
        self.state = self.engine.expand(self.state, num_children)
        if num_children is not None:
            rows = torch.arange(self.num_rows, device=self.device) // num_children
            self._rewards = self._rewards.select(self.grouped(rows))
            self.scores, self.counted = self.scores[rows], self.counted[rows]
        self._score(num_siblings=num_children or 1)

    def select(self, index: Tensor) -> None:
        """Keeps, repeats and reorders rows: (P, G') row numbers."""
        rows = index.flatten()
        self.state, self._rewards = self.state.select(index), self._rewards.select(index)
        self.scores, self.counted = self.scores[rows], self.counted[rows]

    def rekey(self, salt: int, where: Tensor) -> None:
        """New random streams for the rows of some problems, (P,) bool."""
        rows = where.repeat_interleave(self.state.group_size)
        self.state = replace(self.state, keys=torch.where(rows, self.state.rekey(salt).keys, self.state.keys))

    def answer(self, index: Tensor) -> Answers:
        """Answers of chosen rows, (P, G') row numbers."""
        state, counted = self.state.select(index), self.counted[index.flatten()]
        answers = self.engine.answer(state)
        spent = (answers.num_tokens + (~state.finished).long()) * counted  # the last thought is still to be fed
        self.backbone_steps = self.backbone_steps + spent.view(index.shape).sum(dim=1).cpu()
        return answers

    def result(self, chosen: Tensor, scores: Tensor, texts: list[str]) -> SearchResult:
        """The result in which a row stands for each problem: (P,) row numbers, their scores and texts."""
        missing = self.engine.backbone.num_latents - self.state.step
        return SearchResult(
            answers=[parse_answer(text) for text in texts],
            texts=texts,
            scores=scores.cpu().double(),
            latents=pad(self.state.latents[chosen], (0, 0, 0, missing)),
            num_latents=self.state.num_latents[chosen],
            backbone_steps=self.backbone_steps,
            reward_steps=self.reward_steps,
        )

    def _score(self, num_siblings: int) -> None:
        """Scores the latest thoughts of the rows, which are neighbouring families of ``num_siblings``."""
        state = self.state
        if self.distinct:
            self._discount_duplicates(num_siblings)
        self.counted = self.counted & state.finite  # a row in which a NaN or an infinity came up is out of the search
        self._rewards, scores = self.scorer.step(self._rewards, state.latents[:, -1], ~state.finished)
        scores = scores.to(self.device, widest_float(self.device))
        if not bool(torch.isfinite(scores).all()):
            raise UserError("A step score is not finite: check the reward model for NaN or infinite outputs.")
        self.scores = torch.cat([self.scores, scores.masked_fill(state.finished, 0.0).unsqueeze(1)], dim=1)
        scored = self.grouped(self.counted & ~state.finished)
        self.reward_steps = self.reward_steps + scored.sum(dim=1).cpu()

    def _discount_duplicates(self, num_siblings: int) -> None:
        """Stops counting rows whose thoughts are bitwise those of an earlier sibling."""
        latest = self.state.latents[:, -1].view(-1, num_siblings, self.state.latents.shape[2])  # (families, C, D)
        finished = self.state.finished.view(-1, num_siblings)
        repeated = torch.zeros_like(finished)
        for sibling in range(1, num_siblings):
            same = (latest[:, :sibling] == latest[:, sibling : sibling + 1]).all(dim=2)
            same &= finished[:, :sibling] == finished[:, sibling : sibling + 1]
            repeated[:, sibling] = same.any(dim=1)
        self.counted = self.counted & ~repeated.flatten()

    def _bill_backbone(self, positions: int) -> None:
        fed = self.grouped(self.counted & ~self.state.finished)
        self.backbone_steps = self.backbone_steps + positions * fed.sum(dim=1).cpu()

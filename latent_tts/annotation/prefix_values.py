"""Monte-Carlo values of latent prefixes: how likely is the right answer, given the first t thoughts of a rollout?

The way of a problem through this file:

    1. roll out  N rollouts, as the engine draws them: prompt once, every suffix once
    2. rewind    to the first t thoughts of every rollout, for t = 1, 2, ...: the cached keys and values are shared
    3. fork      every rewound row to M children with random streams of their own, which think on and answer
    4. count     the share of the M answers that equal the gold answer: the value of the prefix

Continuations are nearly all of the cost. Where the N rollouts of a problem are all right or all wrong, which a contrastive
training leaves out, they can be saved (``continue_uniform``): such a problem has the values of its last prefixes alone.

The random draws of continuation m are a function of (seed, problem, rollout, t, m): neither the batch, nor N, M or
the chunks of rows that are continued together enter.

What is left to chance after the last thought depends on the sampler. With additive noise, nothing: h_T is fed as it
was drawn. With dropout in the passes that make thoughts (scopes ``latent``, ``prompt+latent``), nothing where T is
fixed, since h_T is fed with the masks off; where the model decides when to stop (CoLaR), the pass over the last
thought is random, and a continuation may think on. With dropout in the answer too (``prompt+latent+answer``), every
answer is a draw. The Monte-Carlo estimate of a prefix after which nothing is left to chance is the rollout's own
correctness, and no pass is spent on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from latent_tts.annotation.settings import LastValue
from latent_tts.answers import AnswerRule, answers_equal
from latent_tts.engine.engine import MOST_ROLLOUTS, RolloutEngine, check_num_rollouts
from latent_tts.engine.memory import FittingParts
from latent_tts.engine.rollouts import Finished, Rollouts
from latent_tts.engine.state import ThoughtState
from latent_tts.errors import UserError
from latent_tts.sampling import PromptSharing

_PREFIX_SALT = 1 << 41  # apart from the small numbers that steps, children and sites are folded in with


@dataclass
class AnnotatedRollouts:
    """N rollouts of each of P problems, and what their prefixes are worth.

    Attributes:
        rollouts: As the engine draws them; their ``token_steps`` are the cost of the rollouts alone.
        correct: (P, N) bool, the rollout's own answer equals the gold answer.
        values: (P, N, T) float32, the value of the first t thoughts at t - 1; NaN where there is no thought, or no value
            was drawn (M = 0, or a uniform problem that was not continued).
        token_steps: (P,) int64, positions that went through the model, continuations included.
    """

    rollouts: Rollouts
    correct: Tensor
    values: Tensor
    token_steps: Tensor


@torch.inference_mode()
def annotate(
    engine: RolloutEngine,
    questions: Sequence[str],
    golds: Sequence[float],
    num_rollouts: int,
    num_continuations: int,
    seed: int = 0,
    problem_ids: Sequence[str] | None = None,
    last: LastValue = "own",
    rule: AnswerRule = "tolerance",
    max_rows: int = 512,
    continue_uniform: bool = True,
    parts: FittingParts | None = None,
) -> AnnotatedRollouts:
    """Draws N rollouts of every question and values each of their prefixes by M continuations.

    Args:
        engine: Its sampler draws the rollouts and the continuations.
        questions: P questions, without the prompt form around them.
        golds: P gold answers.
        num_rollouts: N.
        num_continuations: M; 0 values no prefix but the last of each rollout.
        seed: Seed of every random draw.
        problem_ids: P ids; ``None`` derives each from its question's text.
        last: Value of a rollout's last prefix: the correctness of its ``own`` answer, or the Monte-Carlo ``estimate``
            where anything is left to chance (module docstring).
        rule: When an answer equals the gold answer.
        max_rows: Continuations that are in memory at once (at least the M of one prefix); results do not depend on it.
        continue_uniform: Whether problems whose rollouts are all right or all wrong get continuations too. Without them
            the last prefix of each of their rollouts has its own answer's correctness for a value, and no other has one.
        parts: Cuts continuations that do not fit in memory, and knows from one call to the next how many do.

    Raises:
        UserError: A number out of its range, or a problem without its gold answer.
        DoesNotFitError: There is no room for the M continuations of one prefix.
    """
    check_sizes(num_rollouts, num_continuations, max_rows)
    _check(last, questions, golds)
    parts = continuation_parts() if parts is None else parts
    state, rollouts = _roll_out(engine, engine.expand(engine.start(questions, seed, problem_ids), num_rollouts))
    num_latents = rollouts.num_latents
    answers = [answer for row in rollouts.answers for answer in row]
    correct = _correct(answers, _repeat(golds, num_rollouts), rule).view(-1, num_rollouts)
    values = torch.full((*num_latents.shape, engine.backbone.num_latents), float("nan"))
    ends = num_latents.cpu() > 0
    values[ends] = values[ends].scatter(1, num_latents.cpu()[ends].unsqueeze(1) - 1, correct[ends].float().unsqueeze(1))
    continued = torch.full_like(correct, continue_uniform) | _mixed(correct)
    spent = torch.zeros(num_latents.numel(), dtype=torch.int64)
    for step in range(1, state.step + 1 if num_continuations else 1):
        wanted = _left_to_chance(engine, num_latents, step, last) & continued.to(num_latents.device)
        prefixes = _Prefixes(engine, state, step, golds, num_continuations, rule)
        for rows, shares, cost in prefixes.values(wanted, max_rows, parts):
            values.view(-1, values.shape[2])[rows, step - 1] = shares
            spent[rows] += cost
    token_steps = rollouts.token_steps + spent.view(-1, num_rollouts).sum(dim=1)
    return AnnotatedRollouts(rollouts, correct, values, token_steps)


def _roll_out(engine: RolloutEngine, state: ThoughtState) -> tuple[ThoughtState, Rollouts]:
    """The rollouts, and their state after the last thought, to rewind. Rows that stopped early wait for the others."""
    backbone = engine.backbone
    while state.step < backbone.num_latents and not (backbone.dynamic and bool(state.finished.all())):
        state = engine.expand(state)
    latents = pad(state.latents, (0, 0, 0, backbone.num_latents - state.step))
    finished = Finished(latents, state.num_latents, engine.answer(state))
    return state, engine.as_rollouts(finished, state.prompts)


def _mixed(correct: Tensor) -> Tensor:
    """(P, N) bool, rollouts of problems that have right and wrong ones."""
    return (correct.any(dim=1) & ~correct.all(dim=1)).unsqueeze(1).expand_as(correct)


def _left_to_chance(engine: RolloutEngine, num_latents: Tensor, step: int, last: LastValue) -> Tensor:
    """(P, N) bool, rollouts whose first ``step`` thoughts are valued by continuations."""
    backbone, sampler = engine.backbone, engine.sampler
    may_think_on = backbone.dynamic and sampler.prompt_sharing.random_pass and step < backbone.num_latents
    if last == "estimate" and (engine.random_answer or may_think_on):
        return num_latents >= step
    return num_latents > step


class _Prefixes:
    """The prefixes of ``step`` thoughts of all rollouts, to be continued M times each."""

    def __init__(
        self,
        engine: RolloutEngine,
        state: ThoughtState,
        step: int,
        golds: Sequence[float],
        num_continuations: int,
        rule: AnswerRule,
    ) -> None:
        self.engine, self.step, self.num_continuations, self.rule = engine, step, num_continuations, rule
        self.gold_of_row = _repeat(golds, state.group_size)
        self.state = state.rewind(step).rekey(_PREFIX_SALT + step)
        # A rollout whose prompt can't be shared with the others shares it with its own continuations.
        self.apart = engine.sampler.prompt_sharing is PromptSharing.NONE
        if self.apart:
            prompts = [prompt for prompt in state.prompts for _ in range(state.group_size)]
            self.state = replace(self.state, prompts=prompts)

    def values(self, wanted: Tensor, max_rows: int, parts: FittingParts) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Values of the wanted prefixes, (P, N) bool, some at a time.

        Yields:
            Row numbers among the P * N rollouts (K,), their values (K,) float32, and positions spent on them (K,) int64.
        """
        left = (wanted.reshape(-1, 1) if self.apart else wanted).clone()
        while left.any():
            index, mask = _rectangle(left, max(1, parts.limit(max_rows) // self.num_continuations))
            part = parts.attempt(
                partial(self._continue, index), index.numel() * self.num_continuations, index.numel() == 1
            )
            if part is not None:
                rows, shares, spent = (column[mask.flatten().cpu()] for column in part[0])
                left.view(-1)[rows.to(left.device)] = False
                yield rows, shares, spent

    def _continue(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row numbers, values and positions of the prefixes at (P', G')."""
        engine, step, count = self.engine, self.step, self.num_continuations
        prefixes = self.state.select(index)
        thinks_on = step < engine.backbone.num_latents
        finished = engine.finish(engine.expand(prefixes, count) if thinks_on else prefixes.fork(count))
        rows = index.flatten().cpu()
        right = _correct(finished.answers.answers, _repeat([self.gold_of_row[row] for row in rows], count), self.rule)
        fed = (finished.num_latents - step + finished.answers.num_tokens).cpu().view(len(rows), -1).sum(dim=1)
        fed += count if engine.sampler.prompt_sharing.random_pass else 1  # the pass over the prefix's last thought
        return rows, right.view(len(rows), -1).float().mean(dim=1), fed


def _rectangle(wanted: Tensor, max_prefixes: int) -> tuple[Tensor, Tensor]:
    """The next wanted rows: a rectangle of at most ``max_prefixes``.

    Args:
        wanted: (P, G) bool, at least one of them true.

    Returns:
        Row numbers (P', G'), those of one problem in a line, and which of them are wanted: a line with fewer of them
        than another is filled up with others of its problem.
    """
    counts = wanted.sum(dim=1)
    columns = min(int(counts.max()), max_prefixes)
    lines = counts.nonzero().squeeze(1)[: max_prefixes // columns]
    slots = wanted[lines].int().argsort(dim=1, descending=True, stable=True)[:, :columns]
    return lines.unsqueeze(1) * wanted.shape[1] + slots, wanted[lines].gather(1, slots)


def continuation_parts() -> FittingParts:
    """What cuts continuations that do not fit in memory."""
    return FittingParts("continuations", " A smaller --model.max_rows saves the attempt.")


def _correct(answers: Sequence[float | None], golds: Sequence[float], rule: AnswerRule) -> Tensor:
    """Which answers equal their gold answers, (R,) bool; equal pairs, which are the rule, are compared once."""
    known = {pair: answers_equal(*pair, rule) for pair in set(zip(answers, golds, strict=True))}
    return torch.tensor([known[pair] for pair in zip(answers, golds, strict=True)])


def _repeat(items: Sequence[float], times: int) -> list[float]:
    return [item for item in items for _ in range(times)]


def check_sizes(num_rollouts: int, num_continuations: int, max_rows: int) -> None:
    """UserError where a problem cannot have so many rollouts, or a prefix so many continuations.

    The M of a prefix are in memory at once; prefixes come one after another, and ``max_rows`` is a ceiling alone.
    """
    check_num_rollouts(num_rollouts)
    if num_continuations < 0:
        raise UserError(
            f"num_continuations is {num_continuations}: it must be at least 0, which values only the last prefixes."
        )
    if num_continuations > MOST_ROLLOUTS:
        raise UserError(
            f"num_continuations is {num_continuations}, and a prefix has at most {MOST_ROLLOUTS}, which are in memory at once "
            "and tell its value to 0.001: give fewer."
        )
    if max_rows < 1:
        raise UserError(f"max_rows is {max_rows}: at least 1 continuation must be in memory at once.")


def _check(last: LastValue, questions: Sequence[str], golds: Sequence[float]) -> None:
    if last not in get_args(LastValue):
        raise UserError(f"last must be one of {', '.join(get_args(LastValue))}, got {last!r}.")
    if len(golds) != len(questions):
        raise UserError(f"{len(golds)} gold answers were given for {len(questions)} questions: pass one each.")

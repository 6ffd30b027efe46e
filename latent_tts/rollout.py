"""Parallel latent rollouts: one prompt pass per problem, N trajectories of latent thoughts, N greedy answers.

The way of a problem through this file:

    1. encode   each prompt once: its keys and values, and the hidden state of its last token
    2. fork     to N rows that share the encoded prompt and own a random stream each
    3. think    feed a row its latest latent thought, read the next one off the hidden state, perturb it
    4. answer   feed the last thought and the end-of-thought token, then decode greedily; finished rows leave the batch

A pass that is itself random (MC-dropout) is run after a fork, by every child; one that is not is run before it, once.
What a row computes is a function of (seed, problem id, rollout): neither the other rows, nor padding, nor the order
enters, beyond the last bits of floating-point sums. No vocabulary projection is made in latent steps, except where the
model reads its own stop sign off it (CoLaR).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from latent_tts.answers import parse_answer
from latent_tts.backbones.base import LatentBackbone
from latent_tts.cache import SharedPrefixCache, pad_right
from latent_tts.errors import UserError
from latent_tts.problems import problem_id_from_question
from latent_tts.sampling import Deterministic, PassNoise, Sampler
from latent_tts.seeding import fold_in, problem_keys

_COMPACT_BELOW = 0.75  # rows that still decode are gathered into a smaller batch when their share falls below this
_LOGIT_ROWS = 256  # rows projected to the vocabulary at a time, which bounds the memory of the scores


@dataclass
class Rollouts:
    """N rollouts of each of B problems.

    Attributes:
        problem_ids: B ids, which the random streams were derived from.
        latents: (B, N, T, D), the embeddings fed at the latent positions, 0 where a rollout thought less.
        num_latents: (B, N) int64.
        answer_ids: (B, N, A) int64, from the token after end-of-thought, with the end-of-text token, padded.
        texts: B lists of N decoded answers.
        answers: B lists of N parsed answers, ``None`` where there is none.
        token_steps: (B,) int64, positions that went through the model for a problem: its compute.
    """

    problem_ids: list[str]
    latents: Tensor
    num_latents: Tensor
    answer_ids: Tensor
    texts: list[list[str]]
    answers: list[list[float | None]]
    token_steps: Tensor


@dataclass
class Answers:
    """Decoded answers of R rows: ids (R, A) int64, texts, parsed answers, and positions spent on each, (R,) int64."""

    ids: Tensor
    texts: list[str]
    answers: list[float | None]
    num_tokens: Tensor


@dataclass
class ThoughtState:
    """R = P * G rows in the middle of thinking; the G rows of a problem are neighbours.

    Attributes:
        keys: (R,) int64, random streams.
        prompts: Token ids of the P prompts.
        latents: (R, t, D), thoughts so far, as fed; 0 where a row stopped before.
        num_latents: (R,) int64, thoughts so far.
        finished: (R,) bool, rows whose model chose to stop (CoLaR).
        cache: Everything fed so far; ``None`` before the first thought where every rollout encodes its own prompt.
        hidden: (R, D) after the last position fed; ``None`` while the latest thought is still to be fed.
        pending: (R, D) the embedding to feed next.
        lead: Suffix positions in front of the first thought: 1 where the last prompt token is fed per row, else 0.
    """

    keys: Tensor
    prompts: list[list[int]]
    latents: Tensor
    num_latents: Tensor
    finished: Tensor
    cache: SharedPrefixCache | None
    hidden: Tensor | None
    pending: Tensor | None
    lead: int = 0

    @property
    def step(self) -> int:
        """Latent thoughts of the rows that have not stopped."""
        return self.latents.shape[1]

    @property
    def num_problems(self) -> int:
        return len(self.prompts)

    @property
    def num_rows(self) -> int:
        return self.keys.shape[0]

    @property
    def group_size(self) -> int:
        """Rows per problem (G)."""
        return self.num_rows // self.num_problems

    @property
    def prompt_lengths(self) -> Tensor:
        """(R,) int64, tokens of each row's prompt."""
        lengths = torch.tensor([len(prompt) for prompt in self.prompts], device=self.keys.device)
        return lengths.repeat_interleave(self.group_size)

    def select(self, index: Tensor) -> ThoughtState:
        """Keeps, repeats or reorders rows: index (P', G') of row numbers, the rows of one new group of one problem.

        Copies of a row go on alike until ``rekey`` or an ``expand`` with children tells them apart.
        """
        index = index.to(self.keys.device)
        rows, problems = index.flatten(), (index[:, 0] // self.group_size).tolist()
        cache = None
        if self.cache is not None:
            shared = self.cache.num_groups == self.num_problems
            cache = self.cache.select(index if shared else rows.unsqueeze(-1))
        return ThoughtState(
            keys=self.keys[rows],
            prompts=[self.prompts[p] for p in problems],
            latents=self.latents[rows],
            num_latents=self.num_latents[rows],
            finished=self.finished[rows],
            cache=cache,
            hidden=None if self.hidden is None else self.hidden[rows],
            pending=None if self.pending is None else self.pending[rows],
            lead=self.lead,
        )

    def rewind(self, step: int) -> ThoughtState:
        """The same rows when they had ``step`` thoughts; keys and values are shared with this state, nothing re-encoded.

        A row that stopped earlier is returned finished, with the thoughts it had.
        """
        if not 1 <= step <= self.step:
            raise UserError(f"step must lie between 1 and the {self.step} thoughts of this state, got {step}.")
        assert self.cache is not None
        return replace(
            self,
            latents=self.latents[:, :step],
            num_latents=self.num_latents.clamp(max=step),
            finished=self.num_latents < step,
            cache=self.cache.rewind(self.lead + step - 1),
            hidden=None,
            pending=self.latents[:, step - 1],
        )

    def rekey(self, salt: int) -> ThoughtState:
        """The same rows with new random streams, distinct for every row of a problem."""
        slot = torch.arange(self.num_rows, device=self.keys.device) % self.group_size
        return replace(self, keys=fold_in(fold_in(self.keys, salt), slot))

    def fork(self, num_children: int) -> ThoughtState:
        """Every row becomes ``num_children`` neighbouring rows with random streams of their own."""
        child = torch.arange(num_children, device=self.keys.device).repeat(self.num_rows)

        def repeat(rows: Tensor) -> Tensor:
            return rows.repeat_interleave(num_children, dim=0)

        return replace(
            self,
            keys=fold_in(repeat(self.keys), child),
            latents=repeat(self.latents),
            num_latents=repeat(self.num_latents),
            finished=repeat(self.finished),
            cache=None if self.cache is None else self.cache.repeat(num_children),
            hidden=None if self.hidden is None else repeat(self.hidden),
            pending=None if self.pending is None else repeat(self.pending),
        )


class RolloutEngine:
    """Draws rollouts from a backbone; see the module's docstring for the steps.

    Args:
        backbone: The latent reasoning model, in evaluation mode.
        sampler: How rollouts are made different.
        max_answer_tokens: Answers are cut off after this many tokens.

    Raises:
        UserError: ``max_answer_tokens`` below 1.
    """

    def __init__(
        self, backbone: LatentBackbone, sampler: Sampler | None = None, max_answer_tokens: int = 64
    ) -> None:
        if max_answer_tokens < 1:
            raise UserError(f"max_answer_tokens must be at least 1, got {max_answer_tokens}.")
        self.backbone = backbone
        self.sampler = sampler or Deterministic()
        self.max_answer_tokens = max_answer_tokens

    @torch.inference_mode()
    def rollout(
        self, questions: Sequence[str], num_rollouts: int, seed: int = 0, problem_ids: Sequence[str] | None = None
    ) -> Rollouts:
        """Draws ``num_rollouts`` rollouts of every question.

        Args:
            questions: B questions, without the prompt form around them.
            num_rollouts: N; the first n of N rollouts are the same for every N.
            seed: Together with the problem id and the rollout's number it decides every random draw.
            problem_ids: B ids; ``None`` derives each from its question's text.

        Raises:
            UserError: N below 1, no question, or a prompt that leaves no room for thoughts and answer.
        """
        if num_rollouts < 1:
            raise UserError(f"num_rollouts must be at least 1, got {num_rollouts}.")
        state = self.expand(self.start(questions, seed, problem_ids), num_rollouts)
        prompt_steps = self.prompt_steps(state.prompts, num_rollouts)
        results = _Results(state, self.backbone.num_latents, self.max_answer_tokens, self.backbone.pad_token_id)
        batch = _Batch(state)
        while batch.state.step < self.backbone.num_latents:
            if self.backbone.dynamic:
                stopped = batch.wanted & batch.state.finished
                if torch.equal(stopped, batch.wanted):
                    break
                if batch.share_of(stopped) > 1 - _COMPACT_BELOW:
                    self._settle(batch.keep(stopped), results)
                    batch = batch.keep(batch.wanted & ~stopped)
            batch.state = self.expand(batch.state)
        self._settle(batch, results)
        return self._collect(results, _problem_ids(questions, problem_ids), num_rollouts, prompt_steps)

    def prompt_steps(self, prompts: Sequence[Sequence[int]], num_rollouts: int) -> Tensor:
        """Positions spent on the prompts of P problems: once each, or once per rollout where they can't be shared."""
        copies = 1 if self.sampler.shares_prompt else num_rollouts
        return torch.tensor([len(prompt) * copies for prompt in prompts])

    # The four steps -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def start(self, questions: Sequence[str], seed: int = 0, problem_ids: Sequence[str] | None = None) -> ThoughtState:
        """Encodes every prompt once: one row per problem, no thought yet.

        Where the pass that makes the first thought is random, the last prompt token is left for the rows to feed; where
        the prompt can't be shared at all, encoding waits until ``expand`` has forked the rows.
        """
        backbone, sampler = self.backbone, self.sampler
        prompts = self._encode_text(questions)
        keys = problem_keys(seed, _problem_ids(questions, problem_ids), backbone.device)
        state = ThoughtState(
            keys=keys,
            prompts=prompts,
            latents=torch.empty(len(prompts), 0, backbone.hidden_size, dtype=backbone.dtype, device=backbone.device),
            num_latents=torch.zeros_like(keys),
            finished=torch.zeros_like(keys, dtype=torch.bool),
            cache=None,
            hidden=None,
            pending=None,
        )
        if not sampler.shares_prompt:
            return state
        if not sampler.random_pass:
            return self._encode(state, prompts)
        last = torch.tensor([prompt[-1] for prompt in prompts], device=backbone.device)
        state = self._encode(state, [prompt[:-1] for prompt in prompts])
        return replace(state, hidden=None, pending=backbone.embed(last), lead=1)

    @torch.inference_mode()
    def expand(self, state: ThoughtState, num_children: int | None = None) -> ThoughtState:
        """Every row thinks one more latent thought.

        Args:
            state: Goes on in the returned state; keys and values are extended in place, so expand a state once, or
                with children, which own their copies.
            num_children: Children drawn independently from every row (row r becomes rows r*C to r*C + C - 1, with
                random streams of their own); ``None`` lets each row go on in its own stream.
        """
        if num_children is not None and (self.sampler.random_pass or state.cache is None):
            state, num_children = state.fork(num_children), None
        if state.cache is None:
            state = self._encode(state, [prompt for prompt in state.prompts for _ in range(state.group_size)])
        state = self._advance(state)
        if num_children is not None:
            state = state.fork(num_children)
        return self._think(state)

    @torch.inference_mode()
    def answer(self, state: ThoughtState) -> Answers:
        """Ends the thinking of every row where it stands and decodes its answer greedily; the state stays usable."""
        ids, num_tokens = self._answer_ids(state)
        texts = self._texts(ids)
        return Answers(ids, texts, [parse_answer(text) for text in texts], num_tokens)

    # Passes through the model ---------------------------------------------------------------------------------------

    def _encode(self, state: ThoughtState, prompts: list[list[int]]) -> ThoughtState:
        """The prompt pass, one row per prompt given; prompts are padded on the right."""
        backbone = self.backbone
        ids, mask = pad_right(prompts, backbone.pad_token_id, backbone.device)
        lengths = mask.sum(dim=1)
        positions = torch.arange(ids.shape[1], device=backbone.device).expand_as(ids)
        recorded = DynamicCache()
        with self.sampler.attached(backbone) as noise:
            noise.switch("prompt", state.keys, positions - lengths.unsqueeze(-1))
            hidden = backbone.last_hidden(backbone.embed(ids), mask.long(), positions, recorded)
        last = hidden[torch.arange(len(prompts), device=backbone.device), lengths - 1]
        return replace(state, cache=SharedPrefixCache.from_prompt(recorded, mask), hidden=last)

    def _advance(self, state: ThoughtState) -> ThoughtState:
        """Feeds what is pending, so that every row has the hidden state its next thought is read from."""
        if state.hidden is not None:
            return state
        assert state.cache is not None and state.pending is not None
        cache = state.cache.view()
        real = ~state.finished.unsqueeze(-1) if self.backbone.dynamic else None
        hidden = self._pass(state.pending.unsqueeze(1), state.num_latents - 1, state, cache, "latent", real)
        return replace(state, cache=cache, hidden=hidden[:, -1])

    def _think(self, state: ThoughtState) -> ThoughtState:
        """Reads the next thought off the hidden state, unless the model says that it has thought enough."""
        assert state.hidden is not None
        finished = state.finished
        if self.backbone.dynamic:
            finished = finished | (self._most_likely(state.hidden) == self.backbone.end_of_thought_id)
        latents = self.backbone.next_latent(state.hidden)
        latents = self.sampler.perturb(latents, state.keys, state.num_latents + 1)
        if self.backbone.dynamic:
            latents = latents.masked_fill(finished.unsqueeze(-1), 0.0)
        return replace(
            state,
            latents=torch.cat([state.latents, latents.unsqueeze(1)], dim=1),
            num_latents=state.num_latents + (~finished).long(),
            finished=finished,
            hidden=None,
            pending=latents,
        )

    def _answer_ids(self, state: ThoughtState) -> tuple[Tensor, Tensor]:
        """Greedy answer tokens (R, A), padded, and their numbers (R,)."""
        backbone, limit = self.backbone, self.max_answer_tokens
        ids = torch.full((state.num_rows, limit), backbone.pad_token_id, device=backbone.device)
        num_tokens = torch.zeros_like(state.num_latents)
        batch, hidden = self._end_thought(state)
        for position in range(limit):
            tokens = self._most_likely(hidden)
            written = batch.rows[batch.wanted]
            ids[written, position] = tokens[batch.wanted]
            num_tokens[written] += 1
            batch.wanted = batch.wanted & (tokens != backbone.eos_token_id)
            share = batch.share_of(batch.wanted)
            if share == 0 or position == limit - 1:
                break
            batch.state = replace(batch.state, pending=backbone.embed(tokens))
            if share < _COMPACT_BELOW:
                batch = batch.keep(batch.wanted)
            inputs, cache = batch.state.pending, batch.state.cache
            assert inputs is not None and cache is not None
            offsets = batch.state.num_latents + 1 + position
            hidden = self._pass(inputs.unsqueeze(1), offsets, batch.state, cache, "answer")[:, -1]
        return ids, num_tokens

    def _end_thought(self, state: ThoughtState) -> tuple[_Batch, Tensor]:
        """Feeds the latest thought, where it is still pending, and the end-of-thought token in one pass."""
        backbone = self.backbone
        assert state.cache is not None
        state = replace(state, cache=state.cache.view())
        assert state.cache is not None
        end = torch.full_like(state.num_latents, backbone.end_of_thought_id)
        inputs, offsets, real = backbone.embed(end).unsqueeze(1), state.num_latents.unsqueeze(-1), None
        if state.hidden is None:
            assert state.pending is not None
            inputs = torch.cat([state.pending.unsqueeze(1).to(inputs.dtype), inputs], dim=1)  # (R, 2, D)
            offsets = torch.cat([offsets - 1, offsets], dim=1)
            if backbone.dynamic:
                real = torch.stack([~state.finished, torch.ones_like(state.finished)], dim=1)
        hidden = self._pass(inputs, offsets, state, state.cache, "answer", real)[:, -1]
        return _Batch(replace(state, hidden=None)), hidden

    def _pass(
        self,
        inputs: Tensor,
        offsets: Tensor,
        state: ThoughtState,
        cache: SharedPrefixCache,
        phase: str,
        real: Tensor | None = None,
    ) -> Tensor:
        """One pass over suffix positions: inputs (R, Q, D) at offsets (R,) or (R, Q) from the prompt's end to (R, Q, D)."""
        offsets = offsets.view(inputs.shape[0], -1)
        positions = (state.prompt_lengths.unsqueeze(-1) + offsets).clamp_(min=0)
        cache.begin_pass(inputs.shape[1], real)
        with self.sampler.attached(self.backbone) as noise:
            noise.switch(phase, state.keys, offsets)
            return self.backbone.last_hidden(
                inputs, cache.placeholder_mask(), positions, cache, shared_prefix=cache
            )

    def _most_likely(self, hidden: Tensor) -> Tensor:
        """Arg-max token of every row: (R, D) to (R,), projecting a bounded number of rows at a time."""
        return torch.cat([self.backbone.logits(rows).argmax(dim=-1) for rows in hidden.split(_LOGIT_ROWS)])

    # From and to text -----------------------------------------------------------------------------------------------

    def _encode_text(self, questions: Sequence[str]) -> list[list[int]]:
        if len(questions) == 0:
            raise UserError("There is no question to roll out: pass at least one.")
        prompts = self.backbone.encode_prompts(questions)
        limit = self.backbone.max_positions
        room = self.backbone.num_latents + 1 + self.max_answer_tokens
        for question, prompt in zip(questions, prompts, strict=True):
            if limit is not None and len(prompt) + room > limit:
                raise UserError(
                    f"The prompt of {len(prompt)} tokens that starts {question[:40]!r} leaves no room: with "
                    f"{self.backbone.num_latents} latents and max_answer_tokens={self.max_answer_tokens} it needs "
                    f"{len(prompt) + room} of the model's {limit} positions; shorten it or lower max_answer_tokens."
                )
        return prompts

    def _texts(self, ids: Tensor) -> list[str]:
        """Decoded answers; each distinct one is decoded once, since rollouts often agree."""
        distinct, where = torch.unique(ids, dim=0, return_inverse=True)
        texts = self.backbone.tokenizer.batch_decode(distinct.tolist(), skip_special_tokens=True)
        return [texts[i] for i in where.tolist()]

    def _settle(self, batch: _Batch, results: _Results) -> None:
        """Answers the rows of a batch and writes them to their places."""
        ids, num_tokens = self._answer_ids(batch.state)
        results.write(batch, ids, num_tokens)

    def _collect(
        self, results: _Results, problem_ids: list[str], num_rollouts: int, prompt_steps: Tensor
    ) -> Rollouts:
        shape = (len(problem_ids), num_rollouts)
        texts = self._texts(results.answer_ids)
        parsed = {text: parse_answer(text) for text in set(texts)}
        rows = [texts[start : start + num_rollouts] for start in range(0, len(texts), num_rollouts)]
        spent = (results.num_latents + results.num_tokens).view(shape).sum(dim=1).cpu()
        return Rollouts(
            problem_ids=problem_ids,
            latents=results.latents.view(*shape, *results.latents.shape[1:]),
            num_latents=results.num_latents.view(shape),
            answer_ids=results.answer_ids.view(*shape, -1),
            texts=rows,
            answers=[[parsed[text] for text in row] for row in rows],
            token_steps=prompt_steps + spent,
        )


class _Batch:
    """Rows on their way through the model, and which row of the whole each one is.

    ``keep`` gathers the rows still wanted. A batch stays a rectangle of problems by rows, so a problem with fewer rows
    left than another is filled up with rows of its own that are no longer ``wanted``.
    """

    def __init__(self, state: ThoughtState, rows: Tensor | None = None, wanted: Tensor | None = None) -> None:
        self.state = state
        self.rows = torch.arange(state.num_rows, device=state.keys.device) if rows is None else rows
        self.wanted = torch.ones_like(state.finished) if wanted is None else wanted

    def share_of(self, mask: Tensor) -> float:
        return float(mask.float().mean())

    def keep(self, mask: Tensor) -> _Batch:
        """The rows in the mask, (R,) bool, problems without any left out."""
        if bool(mask.all()):
            return self
        size = self.state.group_size
        per_problem = mask.view(-1, size)
        counts = per_problem.sum(dim=1)
        left = counts.nonzero().squeeze(1)  # problems with rows left
        order = per_problem[left].int().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
        index = left.unsqueeze(1) * size + order  # (P', G')
        wanted = torch.arange(index.shape[1], device=index.device) < counts[left].unsqueeze(1)
        return _Batch(self.state.select(index), self.rows[index.flatten()], wanted.flatten())


class _Results:
    """Fixed places for what R rows bring back, in whatever order they finish."""

    def __init__(self, state: ThoughtState, num_latents: int, max_answer_tokens: int, pad_id: int) -> None:
        rows, device = state.num_rows, state.keys.device
        self.latents = state.latents.new_zeros(rows, num_latents, state.latents.shape[2])
        self.num_latents = torch.zeros_like(state.num_latents)
        self.num_tokens = torch.zeros_like(state.num_latents)
        self.answer_ids = torch.full((rows, max_answer_tokens), pad_id, device=device)

    def write(self, batch: _Batch, answer_ids: Tensor, num_tokens: Tensor) -> None:
        rows, wanted = batch.rows[batch.wanted], batch.wanted
        self.latents[rows, : batch.state.step] = batch.state.latents[wanted]
        self.num_latents[rows] = batch.state.num_latents[wanted]
        self.num_tokens[rows] = num_tokens[wanted]
        self.answer_ids[rows] = answer_ids[wanted]


def _problem_ids(questions: Sequence[str], problem_ids: Sequence[str] | None) -> list[str]:
    if problem_ids is None:
        return [problem_id_from_question(question) for question in questions]
    if len(problem_ids) != len(questions):
        raise UserError(f"{len(problem_ids)} problem ids were given for {len(questions)} questions: pass one each.")
    return list(problem_ids)

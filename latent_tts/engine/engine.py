"""Parallel latent rollouts: one prompt pass per problem, N trajectories of latent thoughts, N greedy answers.

The way of a problem through this file:

    1. encode   each prompt once: its keys and values, and the hidden state of its last token
    2. fork     to N rows that share the encoded prompt and own a random stream each
    3. think    feed a row its latest latent thought, read the next one off the hidden state, perturb it
    4. answer   feed the last thought and the end-of-thought token, then decode greedily; finished rows leave the batch

A pass that is itself random (MC-dropout) is run after a fork, by every child; one that is not is run before it, once.
What a row computes is a function of (seed, problem id, rollout): neither the other rows, nor padding, nor the order enters,
beyond the last bits of floating-point sums, and in a frozen model on a CPU with kernels not even those. No vocabulary
projection is made in latent steps, except where the model reads its own stop sign off it (CoLaR).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from latent_tts.answers import parse_answer
from latent_tts.attention.padding import pad_right
from latent_tts.attention.shared_prefix import SharedPrefixCache
from latent_tts.backbones.base import LatentBackbone
from latent_tts.engine.state import Batch, Results, ThoughtState
from latent_tts.errors import UserError
from latent_tts.problems import problem_id_from_question
from latent_tts.sampling import Deterministic, PromptSharing, Sampler
from latent_tts.seeding import problem_keys

MOST_ROWS = {"cuda": 16384, "cpu": 512}  # rollouts at once; a CPU is no faster with more, and a killed run loses less
_COMPACT_BELOW = 0.75  # rows that still decode are gathered into a smaller batch when their share falls below this


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
class Finished:
    """R rows at the end of their thinking: what they thought, and what they answered.

    Attributes:
        latents: (R, T, D), 0 where a row thought less.
        num_latents: (R,) int64.
        answers: What they answered.
    """

    latents: Tensor
    num_latents: Tensor
    answers: Answers


class RolloutEngine:
    """Draws rollouts from a backbone; see the module's docstring for the steps.

    Args:
        backbone: The latent reasoning model, in evaluation mode.
        sampler: How rollouts are made different.
        max_answer_tokens: Answers are cut off after this many tokens.

    Raises:
        UserError: ``max_answer_tokens`` below 1, or a sampler that can't draw from this backbone.
    """

    def __init__(self, backbone: LatentBackbone, sampler: Sampler | None = None, max_answer_tokens: int = 64) -> None:
        if max_answer_tokens < 1:
            raise UserError(f"max_answer_tokens must be at least 1, got {max_answer_tokens}.")
        self.backbone = backbone
        self.sampler = sampler or Deterministic()
        self.sampler.check(backbone)
        self.max_answer_tokens = max_answer_tokens

    @torch.inference_mode()
    def rollout(
        self,
        questions: Sequence[str],
        num_rollouts: int,
        seed: int = 0,
        problem_ids: Sequence[str] | None = None,
        first_rollout: int = 0,
    ) -> Rollouts:
        """Draws ``num_rollouts`` rollouts of every question.

        Args:
            questions: B questions, without the prompt form around them.
            num_rollouts: N; the first n of N rollouts are the same for every N.
            seed: Together with the problem id and the rollout's number it decides every random draw.
            problem_ids: B ids; ``None`` derives each from its question's text.
            first_rollout: Number of the first of them; those from 8 on are the ones that follow on the first 8.

        Raises:
            UserError: N below 1, no question, or a prompt that leaves no room for thoughts and answer.
        """
        if num_rollouts < 1:
            raise UserError(f"num_rollouts must be at least 1, got {num_rollouts}.")
        start = self.start(questions, seed, problem_ids)
        return self.rollout_from(start, num_rollouts, _problem_ids(questions, problem_ids), first_rollout)

    @torch.inference_mode()
    def rollout_from(
        self, start: ThoughtState, num_rollouts: int, problem_ids: list[str], first_rollout: int = 0
    ) -> Rollouts:
        """Draws rollouts as `rollout` does, of prompts that ``start`` has encoded; they can be drawn from more than once.

        A CPU takes some of them at a time where they are many: that is as fast, and takes less memory.
        """
        on_cpu, end = self.backbone.device.type == "cpu", first_rollout + num_rollouts
        at_a_time = max(1, MOST_ROWS["cpu"] // len(problem_ids)) if on_cpu else num_rollouts
        parts = [
            self._draw(start, min(at_a_time, end - first), problem_ids, first)
            for first in range(first_rollout, end, at_a_time)
        ]
        return join_rollouts(self, start.prompts, parts)

    def _draw(self, start: ThoughtState, num_rollouts: int, problem_ids: list[str], first_rollout: int) -> Rollouts:
        begin = self.expand if self.backbone.num_latents else self._fork
        state = begin(start, num_rollouts, first_rollout)
        return self.as_rollouts(self.finish(state), state.prompts, problem_ids)

    @torch.inference_mode()
    def finish(self, state: ThoughtState) -> Finished:
        """Lets every row think to its end and answer; rows that stop early (CoLaR) leave the batch.

        Args:
            state: Is used up by this: rewind it only to the thoughts it has now.
        """
        results = Results(state, self.backbone.num_latents, self.max_answer_tokens, self.backbone.pad_token_id)
        batch = Batch(state)
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
        return Finished(
            results.latents, results.num_latents, self._read_answers(results.answer_ids, results.num_tokens)
        )

    def as_rollouts(self, finished: Finished, prompts: Sequence[Sequence[int]], problem_ids: list[str]) -> Rollouts:
        """Gives the rows of B problems, N neighbours each, the shape (B, N), and adds up what each problem has cost."""
        size = len(finished.num_latents) // len(problem_ids)
        shape = (len(problem_ids), size)
        answers = finished.answers
        spent = (finished.num_latents + answers.num_tokens).view(shape).sum(dim=1).cpu()
        starts = range(0, len(answers.texts), size)
        return Rollouts(
            problem_ids=problem_ids,
            latents=finished.latents.view(*shape, *finished.latents.shape[1:]),
            num_latents=finished.num_latents.view(shape),
            answer_ids=answers.ids.view(*shape, -1),
            texts=[answers.texts[start : start + size] for start in starts],
            answers=[answers.answers[start : start + size] for start in starts],
            token_steps=self.prompt_steps(prompts, size) + spent,
        )

    def prompt_steps(self, prompts: Sequence[Sequence[int]], num_rollouts: int) -> Tensor:
        """Positions spent on the prompts of P problems: once each, or once per rollout where they can't be shared."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        shared = torch.tensor([self.sampler.prompt_sharing.num_shared(len(prompt)) for prompt in prompts])
        return shared + num_rollouts * (lengths - shared)

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
            prompt_lengths=torch.tensor([len(prompt) for prompt in prompts], device=backbone.device),
            latents=torch.empty(len(prompts), 0, backbone.hidden_size, dtype=backbone.dtype, device=backbone.device),
            num_latents=torch.zeros_like(keys),
            finished=torch.zeros_like(keys, dtype=torch.bool),
            cache=None,
            hidden=None,
            pending=None,
        )
        if sampler.prompt_sharing is PromptSharing.NONE:
            return state
        if sampler.prompt_sharing is PromptSharing.ALL:
            return self._encode(state, prompts)
        last = torch.tensor([prompt[-1] for prompt in prompts], device=backbone.device)
        state = self._encode(replace(state, lead=1), [prompt[:-1] for prompt in prompts])
        return replace(state, hidden=None, pending=backbone.embed(last))

    @torch.inference_mode()
    def expand(self, state: ThoughtState, num_children: int | None = None, first_child: int = 0) -> ThoughtState:
        """Every row thinks one more latent thought.

        Args:
            state: Goes on in the returned state; keys and values are extended in place, so expand a state once, or
                with children, which own their copies.
            num_children: Children drawn independently from every row (row r becomes rows r*C to r*C + C - 1, with
                random streams of their own); ``None`` lets each row go on in its own stream.
            first_child: Number of the first child, which its stream is made from.
        """
        if num_children is not None and (self.sampler.prompt_sharing.random_pass or state.cache is None):
            state, num_children = state.fork(num_children, first_child), None
        state = self._advance(self._encoded(state))
        if num_children is not None:
            state = state.fork(num_children, first_child)
        return self._think(state)

    @torch.inference_mode()
    def answer(self, state: ThoughtState) -> Answers:
        """Ends the thinking of every row where it stands and decodes its answer greedily; the state stays usable."""
        return self._read_answers(*self._answer_ids(state))

    def _fork(self, state: ThoughtState, num_children: int, first_child: int) -> ThoughtState:
        """Rows of encoded prompts that answer without a thought."""
        return self._encoded(state.fork(num_children, first_child))

    # Passes through the model ---------------------------------------------------------------------------------------

    def _encoded(self, state: ThoughtState) -> ThoughtState:
        """The state with its prompts encoded: row by row, where that has waited for the rows to be forked."""
        if state.cache is not None:
            return state
        return self._encode(state, [prompt for prompt in state.prompts for _ in range(state.group_size)])

    def _encode(self, state: ThoughtState, prompts: list[list[int]]) -> ThoughtState:
        """The prompt pass, one row per prompt given.

        Prompts are padded on the right, where no real token looks: the pass needs no mask, only what comes after it does.
        """
        backbone = self.backbone
        ids, mask = pad_right(prompts, backbone.pad_token_id, backbone.device)
        lengths = mask.sum(dim=1)
        positions = torch.arange(ids.shape[1], device=backbone.device).expand_as(ids)
        recorded = DynamicCache()
        with self.sampler.attached(backbone) as noise:
            noise.switch("prompt", state.keys, positions - lengths.unsqueeze(-1))
            hidden = backbone.last_hidden(backbone.embed(ids), None, positions, recorded)
        last = hidden[torch.arange(len(prompts), device=backbone.device), lengths - 1]
        slots = state.lead + backbone.num_latents + self.max_answer_tokens  # the last token is chosen, not fed
        padded = len({len(prompt) for prompt in prompts}) > 1
        cache = SharedPrefixCache.from_prompt(recorded, mask if padded else None, slots)
        return replace(state, cache=cache, hidden=last)

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
            finished = finished | (self.backbone.most_likely(state.hidden) == self.backbone.end_of_thought_id)
        latents = self.sampler.next_latent(self.backbone, state.hidden, state.keys, state.num_latents + 1)
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
            tokens = backbone.most_likely(hidden)
            ids[batch.rows, position] = tokens.masked_fill(~batch.wanted, backbone.pad_token_id)
            num_tokens[batch.rows] += batch.wanted
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

    def _end_thought(self, state: ThoughtState) -> tuple[Batch, Tensor]:
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
        return Batch(replace(state, hidden=None)), hidden

    def _pass(
        self,
        inputs: Tensor,
        offsets: Tensor,
        state: ThoughtState,
        cache: SharedPrefixCache,
        phase: str,
        real: Tensor | None = None,
    ) -> Tensor:
        """One pass over suffix positions, at offsets (R,) or (R, Q) from the prompt's end: (R, Q, D) to (R, Q, D)."""
        offsets = offsets.view(inputs.shape[0], -1)
        positions = (state.prompt_lengths.unsqueeze(-1) + offsets).clamp_(min=0)
        cache.begin_pass(inputs.shape[1], real)
        with self.sampler.attached(self.backbone) as noise:
            noise.switch(phase, state.keys, offsets)
            return self.backbone.last_hidden(inputs, cache.placeholder_mask(), positions, cache, shared_prefix=cache)

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

    def _read_answers(self, ids: Tensor, num_tokens: Tensor) -> Answers:
        """Texts and answers of token ids; each distinct row is decoded and parsed once, since rollouts often agree."""
        distinct, where = torch.unique(ids, dim=0, return_inverse=True)
        texts = self.backbone.tokenizer.batch_decode(distinct.tolist(), skip_special_tokens=True)
        parsed = [parse_answer(text) for text in texts]
        order = where.tolist()
        return Answers(ids, [texts[i] for i in order], [parsed[i] for i in order], num_tokens)

    def _settle(self, batch: Batch, results: Results) -> None:
        """Answers the rows of a batch and writes them to their places."""
        ids, num_tokens = self._answer_ids(batch.state)
        results.write(batch, ids, num_tokens)


def _problem_ids(questions: Sequence[str], problem_ids: Sequence[str] | None) -> list[str]:
    if problem_ids is None:
        return [problem_id_from_question(question) for question in questions]
    if len(problem_ids) != len(questions):
        raise UserError(f"{len(problem_ids)} problem ids were given for {len(questions)} questions: pass one each.")
    return list(problem_ids)


def join_rollouts(engine: RolloutEngine, prompts: Sequence[Sequence[int]], parts: Sequence[Rollouts]) -> Rollouts:
    """The rollouts of the same problems, drawn a few at a time, as if they had been drawn at once.

    Args:
        engine: Which drew them.
        prompts: Token ids of the problems' prompts.
        parts: Rollouts 0 to i, i + 1 to j, and so on.
    """
    if len(parts) == 1:
        return parts[0]
    shared = engine.prompt_steps(prompts, 0)  # what every part has spent again
    rows = range(len(prompts))
    return Rollouts(
        problem_ids=parts[0].problem_ids,
        latents=torch.cat([part.latents for part in parts], dim=1),
        num_latents=torch.cat([part.num_latents for part in parts], dim=1),
        answer_ids=torch.cat([part.answer_ids for part in parts], dim=1),
        texts=[[text for part in parts for text in part.texts[i]] for i in rows],
        answers=[[answer for part in parts for answer in part.answers[i]] for i in rows],
        token_steps=torch.stack([part.token_steps for part in parts]).sum(dim=0) - (len(parts) - 1) * shared,
    )

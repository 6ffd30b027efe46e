"""Parallel latent rollouts: one prompt pass per problem, N trajectories of latent thoughts, N answers.

The way of a problem through this file:

    1. encode   each prompt once: its keys and values, and the hidden state of its last token
    2. fork     to N rows that share the encoded prompt and own a random stream each
    3. think    feed a row its latest latent thought, read the next one off the hidden state, perturb it
    4. answer   feed the last thought and the end-of-thought token, then decode; finished rows leave the batch

A pass that is itself random (MC-dropout) is run after a fork, by every child; one that is not is run before it, once.
What a row computes is a function of (seed, problem id, rollout): neither the other rows, nor padding, nor the order enters,
beyond the last bits of floating-point sums, and in a frozen model on a CPU with kernels, or with ``rollouts_per_part``, not even
those. No vocabulary projection is made in latent steps, except where the model reads its own stop sign off it (CoLaR).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from latent_tts.backbones.base import LatentBackbone
from latent_tts.engine.compaction import COMPACT_BELOW, Batch, Results
from latent_tts.engine.decoding import AnswerDecoder
from latent_tts.engine.parts import RolloutParts
from latent_tts.engine.passes import Passes
from latent_tts.engine.prompts import Prompt, make_prompts
from latent_tts.engine.rollouts import Answers, Finished, Rollouts, join_rollouts, prompt_steps, read_answers
from latent_tts.engine.state import ThoughtState
from latent_tts.errors import UserError
from latent_tts.sampling import AnswerSampler, Deterministic, PromptSharing, Sampler
from latent_tts.seeding import problem_keys

MOST_ROLLOUTS = 1_000_000
"""Of a problem: they are one record, of some 150 MB, which is written and read back as one line."""


class RolloutEngine:
    """Draws rollouts from a backbone; see the module's docstring for the steps.

    Args:
        backbone: The latent reasoning model, in evaluation mode.
        sampler: How rollouts are made different.
        max_answer_tokens: Answers are cut off after this many tokens.
        answer_sampler: How the tokens of answers are drawn; ``None`` takes the most probable one at every place.
        rollouts_per_part: R: of one problem at a time always rollouts kR to kR + R - 1 are computed together, with no other
            beside them; what was not asked for is dropped, and not counted. ``None``: as many as are quick and fit.

    Raises:
        UserError: ``max_answer_tokens`` or R below 1, or a sampler that can't draw from this backbone.
    """

    def __init__(
        self,
        backbone: LatentBackbone,
        sampler: Sampler | None = None,
        max_answer_tokens: int = 64,
        answer_sampler: AnswerSampler | None = None,
        rollouts_per_part: int | None = None,
    ) -> None:
        if max_answer_tokens < 1:
            raise UserError(f"max_answer_tokens must be at least 1, got {max_answer_tokens}.")
        self.backbone = backbone
        self.sampler = sampler or Deterministic()
        self.sampler.check(backbone)
        self.max_answer_tokens = max_answer_tokens
        self.answer_sampler = answer_sampler
        self.passes = Passes(backbone, self.sampler)
        self.decoder = AnswerDecoder(self.passes, max_answer_tokens, answer_sampler)
        self.parts = RolloutParts(rollouts_per_part)

    @property
    def random_answer(self) -> bool:
        """Whether the same thoughts can end in different answers."""
        return self.sampler.random_answer or self.answer_sampler is not None

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
            UserError: N below 1, no question, a prompt that leaves no room for thoughts and answer, or a backbone in training
                mode, whose own dropout would enter.
        """
        _check_counts(num_rollouts, first_rollout)
        return self.rollout_from(self.start(questions, seed, problem_ids), num_rollouts, first_rollout)

    @torch.inference_mode()
    def rollout_from(self, start: ThoughtState, num_rollouts: int, first_rollout: int = 0) -> Rollouts:
        """Draws rollouts as `rollout` does, of prompts that ``start`` has encoded.

        Some of them at a time, where they are many or memory is short: a CPU is as fast with fewer.

        Raises:
            DoesNotFitError: There is no room for one rollout of every problem.
        """
        _check_counts(num_rollouts, first_rollout)
        drawn = join_rollouts(self.parts.run(partial(self._draw, start), start, num_rollouts, first_rollout))
        return self.parts.asked(drawn, num_rollouts, first_rollout)

    def _draw(self, start: ThoughtState, first: int, end: int) -> Rollouts:
        random_thoughts = self.sampler.random_thoughts and self.backbone.num_latents > 0
        if random_thoughts:
            state = self.expand(start, end - first, first)
        else:
            state = self._encoded(self._thought_through(start).fork(end - first, first))
        finished = self.finish(state)
        return Rollouts.of(finished, start.prompts, self.sampler.prompt_sharing, shared_thoughts=not random_thoughts)

    def _thought_through(self, state: ThoughtState) -> ThoughtState:
        """The rows with all their thoughts, where these are the same for all rollouts of a problem."""
        while state.step < self.backbone.num_latents and not (self.backbone.dynamic and bool(state.finished.all())):
            state = self.expand(state)
        return state

    @torch.inference_mode()
    def replay(self, start: ThoughtState, latents: Tensor, num_latents: Tensor) -> Rollouts:
        """Rollouts as `rollout_from` draws them, but with thoughts that are given in place of their own.

        Fed are the thoughts, then the end of thought; passes and answers are as random as they would have been.

        Args:
            start: P encoded prompts.
            latents: (P, N, T, D), 0 where a row has fewer thoughts; N are whole parts, where these have a fixed size.
            num_latents: (P, N) int64, at most those of the backbone; all alike where it thinks a fixed number.
        """

        def part(first: int, end: int) -> Rollouts:
            own, counts = latents[:, first:end].flatten(0, 1), num_latents[:, first:end].flatten()
            state = self._encoded(start.fork(end - first, first))
            for step in range(int(counts.max())):
                state = self._advance(state).with_thought(
                    own[:, step], counts <= step, own[:, step].isfinite().all(dim=-1)
                )
            return self.as_rollouts(Finished(own, counts, self.answer(state)), start.prompts)

        return join_rollouts(self.parts.run(part, start, latents.shape[1]))

    @torch.inference_mode()
    def finish(self, state: ThoughtState) -> Finished:
        """Lets every row think to its end and answer; rows that stop early (CoLaR) leave the batch."""
        results = Results(state, self.backbone.num_latents, self.max_answer_tokens, self.backbone.pad_token_id)
        batch = Batch(state)
        while batch.state.step < self.backbone.num_latents:
            if self.backbone.dynamic:
                stopped = batch.wanted & batch.state.finished
                if torch.equal(stopped, batch.wanted):
                    break
                if batch.share_of(stopped) > 1 - COMPACT_BELOW:
                    self._settle(batch.keep(stopped), results)
                    batch = batch.keep(batch.wanted & ~stopped)
            batch.state = self.expand(batch.state)
        self._settle(batch, results)
        answers = read_answers(self.backbone, results.answer_ids, results.num_tokens, results.finite)
        return Finished(results.latents, results.num_latents, answers)

    def _settle(self, batch: Batch, results: Results) -> None:
        """Answers the rows of a batch and writes them to their places."""
        results.write(batch, *self.decoder.decode(batch.state))

    def as_rollouts(self, finished: Finished, prompts: Sequence[Prompt]) -> Rollouts:
        """Gives the rows of B problems, N neighbours each, the shape (B, N), and adds up what each problem has cost."""
        return Rollouts.of(finished, prompts, self.sampler.prompt_sharing)

    def prompt_steps(self, prompts: Sequence[Prompt], num_rollouts: int) -> Tensor:
        """Positions (P,) spent on the prompts of P problems: once each, or once per rollout where they can't be shared."""
        return prompt_steps(prompts, num_rollouts, self.sampler.prompt_sharing)

    # 1. encode ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def start(self, questions: Sequence[str], seed: int = 0, problem_ids: Sequence[str] | None = None) -> ThoughtState:
        """Encodes of every prompt what its rollouts can share: one row per problem, no thought yet.

        Where the pass that makes the first thought is random, the last prompt token is left for the rows to feed; where
        the prompt can't be shared at all, encoding waits until ``expand`` has forked the rows.

        Raises:
            UserError: As ``rollout``.
        """
        backbone, sharing = self.backbone, self.sampler.prompt_sharing
        _check_mode(backbone)
        self.parts.check(len(questions))
        prompts = make_prompts(backbone, questions, problem_ids, self.max_answer_tokens)
        keys = problem_keys(seed, [prompt.problem_id for prompt in prompts], backbone.device)
        state = ThoughtState.of(prompts, keys, backbone.hidden_size, backbone.dtype)
        if sharing is PromptSharing.NONE:
            return state
        shared = [prompt.ids[: sharing.num_shared(len(prompt.ids))] for prompt in prompts]
        if sharing is PromptSharing.ALL:
            return self._encode(state, shared)
        last = torch.tensor([prompt.ids[-1] for prompt in prompts], device=backbone.device)
        return replace(self._encode(replace(state, lead=1), shared), hidden=None, pending=backbone.embed(last))

    def _encoded(self, state: ThoughtState) -> ThoughtState:
        """The state with its prompts encoded: row by row, where that has waited for the rows to be forked."""
        if state.cache is not None:
            return state
        return self._encode(state, [prompt.ids for prompt in state.prompts for _ in range(state.group_size)])

    def _encode(self, state: ThoughtState, prompts: list[list[int]]) -> ThoughtState:
        """The prompt pass, one row per prompt given."""
        return self.passes.over_prompts(state, prompts, self.max_answer_tokens)

    # 2. fork, and 3. think ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def expand(self, state: ThoughtState, num_children: int | None = None, first_child: int = 0) -> ThoughtState:
        """Every row thinks one more latent thought.

        Args:
            state: Stays as it is: it may be expanded any number of times.
            num_children: Children drawn independently from every row (row r becomes rows r*C to r*C + C - 1, with
                random streams of their own); ``None`` lets each row go on in its own stream.
            first_child: Number of the first child, which its stream is made from.
        """
        forks_first = self.sampler.prompt_sharing.random_pass
        if num_children is not None and forks_first:
            state = state.fork(num_children, first_child)
        state = self._advance(self._encoded(state))
        if num_children is not None and not forks_first:
            state = state.fork(num_children, first_child)
        return self._think(state)

    def _advance(self, state: ThoughtState) -> ThoughtState:
        """Feeds what is pending, so that every row has the hidden state its next thought is read from."""
        if state.hidden is not None:
            return state
        assert state.pending is not None
        real = ~state.finished.unsqueeze(-1) if self.backbone.dynamic else None
        return self.passes.over(state.pending.unsqueeze(1), state.num_latents - 1, state, "latent", real)

    def _think(self, state: ThoughtState) -> ThoughtState:
        """Reads the next thought off the hidden state, unless the model says that it has thought enough.

        A row with a NaN or an infinity in a thought is fed 0 from there on, so that no other suffers; no value is waited for.
        """
        assert state.hidden is not None
        finished, finite = state.finished, state.finite
        if self.backbone.dynamic:
            stops = self.backbone.most_likely(state.hidden) == self.backbone.end_of_thought_id
            finished = finished | stops | ~finite
        latents = self.sampler.next_latent(self.backbone, state.hidden, state.keys, state.num_latents + 1)
        return state.with_thought(latents, finished, finite & latents.isfinite().all(dim=-1))

    # 4. answer ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def answer(self, state: ThoughtState) -> Answers:
        """Ends the thinking of every row where it stands and decodes its answer."""
        return read_answers(self.backbone, *self.decoder.decode(state))


def check_num_rollouts(num_rollouts: int) -> None:
    """UserError where a problem cannot have so many rollouts."""
    if num_rollouts < 1:
        raise UserError(
            f"num_rollouts must be at least 1, got {num_rollouts}: it is the number of rollouts of each problem."
        )
    if num_rollouts > MOST_ROLLOUTS:
        raise UserError(
            f"num_rollouts is {num_rollouts}, and a problem has at most {MOST_ROLLOUTS}, which are one record: draw the others "
            "in runs with other seeds, which `report` puts side by side."
        )


def _check_counts(num_rollouts: int, first_rollout: int) -> None:
    check_num_rollouts(num_rollouts)
    if first_rollout < 0:
        raise UserError(f"first_rollout must not be negative, got {first_rollout}: rollouts are numbered from 0.")


def _check_mode(backbone: LatentBackbone) -> None:
    if any(part.training for part in backbone.children()):
        raise UserError("The backbone is in training mode, in which its own dropout is on: call backbone.eval() first.")

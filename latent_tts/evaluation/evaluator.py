"""From problems to records: the journey of a batch of problems, each step one call.

problems -> prompts -> rollouts -> greedy answers -> written answers -> step scores -> searches -> records with chosen answers
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from latent_tts.aggregation import Aggregation
from latent_tts.answers import AnswerRule
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.memory import DoesNotFitError, FittingParts
from latent_tts.engine.rollouts import Rollouts, join_rollouts
from latent_tts.engine.state import ThoughtState
from latent_tts.errors import UserError
from latent_tts.evaluation.clock import RolloutClock
from latent_tts.evaluation.completion import (
    Earlier,
    Have,
    restored_answers,
    restored_rollouts,
    think,
)
from latent_tts.evaluation.controls import LatentControl
from latent_tts.evaluation.latent_files import KeptLatents, LatentFiles
from latent_tts.evaluation.problem_values import choose
from latent_tts.evaluation.record_making import Drawn, make_record, search_records, written_record
from latent_tts.evaluation.records import Record, SearchRecord
from latent_tts.evaluation.strategies import make_aggregations, of_search
from latent_tts.problems import Problem
from latent_tts.reward import LatentRewardModel
from latent_tts.sampling import Deterministic, PromptSharing
from latent_tts.search import Search, SearchResult

R = TypeVar("R")


class Evaluator:
    """Makes a record of every problem.

    A record depends on the problem, the seed and the parts given here alone: neither on the batch, nor on what memory allows
    (a batch that does not fit is cut in parts).

    Args:
        engine: Draws the rollouts.
        reward_model: Scores them, and guides searches.
        aggregations: How the N rollouts become one answer; None for all that need no more than what is given.
        searches: Run beside the rollouts; they need a reward model.
        num_rollouts: N, rollouts of each problem.
        seed: Seed of every random draw.
        answer_rule: When an answer equals the gold one.
        written_engine: Of a model that reasons in writing, whose greedy answers are kept beside those of the latent one.
        control: Replaces the latents before the answers, of the rollouts and of the greedy one.
        keep_latents: Whether `thought` holds the latents of the problems evaluated last.

    Attributes:
        thought: The latents of the problems of the latest `evaluate`, by id, where they are to be kept.
        kept: Where the latents of earlier records are; None where they are thought again.

    Raises:
        UserError: N below 1, an aggregation or search that needs a reward model without one, a reward model of another size or
            beside a control.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        reward_model: LatentRewardModel | None = None,
        aggregations: Sequence[Aggregation] | None = None,
        searches: Sequence[Search] = (),
        num_rollouts: int = 16,
        seed: int = 0,
        answer_rule: AnswerRule = "tolerance",
        written_engine: RolloutEngine | None = None,
        control: LatentControl | None = None,
        keep_latents: bool = False,
    ) -> None:
        if num_rollouts < 1:
            raise UserError(
                f"num_rollouts must be at least 1, got {num_rollouts}: it is the number of rollouts of each problem."
            )
        self.engine, self.reward_model, self.written_engine = engine, reward_model, written_engine
        self.greedy_engine = RolloutEngine(engine.backbone, Deterministic(), engine.max_answer_tokens)
        if aggregations is None:
            aggregations = make_aggregations(None, scored=reward_model is not None)
        self.aggregations = list(aggregations)
        self.searches = {of_search(search): search for search in searches}
        self.num_rollouts, self.seed, self.answer_rule = num_rollouts, seed, answer_rule
        self.control, self.keep_latents = control, keep_latents
        self.thought: dict[str, KeptLatents] = {}
        self.kept: LatentFiles | None = None
        self.clock = RolloutClock()
        self._problem_parts = FittingParts("problems", " A smaller --data.batch_size saves the attempt.")
        self._rollout_parts = FittingParts("rollouts of one problem")
        self._check_reward_model()
        self._check_control()

    def _check_control(self) -> None:
        if self.control is not None:
            self.control.check(self.engine)
            if self.searches:
                raise UserError(
                    "Searches think with latents of their own: leave --model.search, or latent_control, out."
                )
            if self.reward_model is not None:
                raise UserError(
                    "Scores of latents that were replaced mean nothing: leave the reward model, or latent_control, out."
                )

    def _check_reward_model(self) -> None:
        backbone, model = self.engine.backbone, self.reward_model
        if model is None:
            needing = [part.name for part in self.aggregations if part.needs_scores] + [
                strategy.key for strategy, search in self.searches.items() if search.needs_scores
            ]
            if needing:
                raise UserError(f"{needing[0]} needs step scores: give a reward model, or leave it out.")
        elif model.hidden_size != backbone.hidden_size:
            raise UserError(
                f"The reward model scores latents of size {model.hidden_size}, but the backbone's have "
                f"{backbone.hidden_size}: use the reward model trained for this backbone."
            )

    @torch.inference_mode()
    def evaluate(self, problems: Sequence[Problem], earlier: Earlier | None = None) -> list[Record]:
        """One record a problem, in their order.

        Args:
            problems: To think about.
            earlier: The smaller records that there are: what they lack is added, and nothing else is drawn.

        Raises:
            UserError: Not even one problem with one rollout fits in memory.
        """
        self.thought = {}
        try:
            parts = self._problem_parts.run(
                lambda first, end: self._evaluate_or_complete(problems[first:end], earlier), len(problems)
            )
        except DoesNotFitError as error:
            raise UserError(
                f"Not even one problem with one rollout fits in the memory of {self.engine.backbone.device}: take "
                "--model.dtype bfloat16, a smaller --model.max_answer_tokens, or a device with more room."
            ) from error
        return [record for part in parts for record in part]

    def _evaluate_or_complete(self, problems: Sequence[Problem], earlier: Earlier | None) -> list[Record]:
        """In groups of problems whose earlier records hold the same."""
        found = [None if earlier is None else earlier(problem.problem_id) for problem in problems]
        have = [None if record is None else Have.of(record) for record in found]
        made: dict[int, Record] = {}
        for group in dict.fromkeys(have):
            places = [i for i, one in enumerate(have) if one == group]
            some, records = [problems[i] for i in places], [record for i in places if (record := found[i]) is not None]
            done = self._evaluate(some) if group is None else self._complete(some, records, group)
            made |= zip(places, done, strict=True)
        return [made[i] for i in range(len(problems))]

    def _evaluate(self, problems: Sequence[Problem]) -> list[Record]:
        questions, ids = [problem.question for problem in problems], [problem.problem_id for problem in problems]
        started = time.perf_counter()
        start = self.engine.start(questions, self.seed, ids)
        rollouts = self._draw(self.engine, start, problems, self.num_rollouts)
        self.clock.add(started, len(problems) * self.num_rollouts, self.engine.backbone.device)
        drawn = Drawn(
            prompts=start.prompts,
            rollouts=rollouts,
            greedy=self._greedy(start, problems),
            written=None if self.written_engine is None else self.written_engine.rollout(questions, num_rollouts=1),
            scores=self._scores(questions, rollouts),
            found=self._search(questions, ids, start, self._by_key(), rollouts),
        )
        self._note(ids, rollouts)
        records = [make_record(problem, i, drawn, self.answer_rule) for i, problem in enumerate(problems)]
        partners = {} if self.control is None else self.control.partners
        return [
            replace(one, chosen=choose(one, self.aggregations), latents_of=partners.get(one.problem_id))
            for one in records
        ]

    def _note(self, ids: Sequence[str], rollouts: Rollouts) -> None:
        if self.keep_latents:
            latents, counts = rollouts.latents.float().cpu(), rollouts.num_latents.cpu()
            self.thought |= {one: KeptLatents(latents[i], counts[i]) for i, one in enumerate(ids)}

    # Completion -----------------------------------------------------------------------------------------------------

    def _complete(self, problems: Sequence[Problem], earlier: Sequence[Record], have: Have) -> list[Record]:
        """The records with what they lack; rollouts, answers and searches that they hold stay."""
        questions, ids = [one.question for one in problems], [one.problem_id for one in problems]
        searches = {key: one for key, one in self._by_key().items() if key not in have.searches}
        thinks = have.num_rollouts < self.num_rollouts or (self.reward_model is not None and not have.scored)
        thinks = thinks or (self.keep_latents and not self._all_kept(ids, have.num_rollouts))
        start = self.engine.start(questions, self.seed, ids) if thinks or searches else None
        records = list(earlier)
        found: dict[str, SearchResult] = {}
        if start is not None:
            records = self._with_rollouts(problems, records, have, start) if thinks else records
            found = self._search(questions, ids, start, searches)
        written = None
        if self.written_engine is not None and not have.written:
            written = self.written_engine.rollout(questions, num_rollouts=1)
        return [
            self._whole(replace(record, written=old.written), problem, i, old.search, found, written)
            for i, (record, problem, old) in enumerate(zip(records, problems, earlier, strict=True))
        ]

    def _whole(
        self,
        record: Record,
        problem: Problem,
        i: int,
        search: dict[str, SearchRecord],
        found: dict[str, SearchResult],
        written: Rollouts | None,
    ) -> Record:
        """A record with the searches that it had and those found now, written reasoning and what is chosen."""
        searches = search | search_records(problem, i, found, self.answer_rule)
        if written is not None:
            record = replace(record, written=written_record(problem, i, written, self.answer_rule))
        record = replace(record, search={key: searches[key] for key in self._by_key()})
        return replace(record, chosen=choose(record, self.aggregations))

    def _with_rollouts(
        self, problems: Sequence[Problem], earlier: Sequence[Record], have: Have, start: ThoughtState
    ) -> list[Record]:
        """The records with all N rollouts, scored."""
        questions, ids = [one.question for one in problems], [one.problem_id for one in problems]
        rollouts = restored_rollouts(earlier, self._latents(ids, have.num_rollouts, start))
        missing = self.num_rollouts - have.num_rollouts
        if missing:
            started = time.perf_counter()
            new = self.engine.rollout_from(start, missing, have.num_rollouts)
            self.clock.add(started, len(problems) * missing, self.engine.backbone.device)
            rollouts = join_rollouts([replace(rollouts, answer_ids=new.answer_ids[:, :0]), new])
        self._note(ids, rollouts)
        greedy = [record.greedy for record in earlier]
        drawn = Drawn(
            prompts=start.prompts,
            rollouts=rollouts,
            greedy=restored_answers(earlier, greedy, [record.token_steps.greedy for record in earlier]),
            written=None,
            # all of them again, packed as they would be: a score's last digit depends on what is scored beside it
            scores=self._scores(questions, rollouts),
            found={},
        )
        return [make_record(problem, i, drawn, self.answer_rule) for i, problem in enumerate(problems)]

    def _latents(self, ids: Sequence[str], num_rollouts: int, start: ThoughtState) -> Tensor:
        """Of the first rollouts (B, n, T, D): as they are kept, or thought again."""
        if self.kept is None or not self._all_kept(ids, num_rollouts):
            return think(self.engine, start, num_rollouts)
        backbone = self.engine.backbone
        found = [self.kept.read(one).latents[:num_rollouts] for one in ids]
        padded = [pad(one, (0, 0, 0, backbone.num_latents - one.shape[1])) for one in found]
        return torch.stack(padded).to(backbone.device, start.latents.dtype)

    def _all_kept(self, ids: Sequence[str], num_rollouts: int) -> bool:
        return self.kept is not None and all(self.kept.num_rollouts(one) >= num_rollouts for one in ids)

    def _by_key(self) -> dict[str, Search]:
        return {strategy.key: search for strategy, search in self.searches.items()}

    # Steps ----------------------------------------------------------------------------------------------------------

    def _draw(
        self, engine: RolloutEngine, start: ThoughtState, problems: Sequence[Problem], num_rollouts: int
    ) -> Rollouts:
        if self.control is None:
            return engine.rollout_from(start, num_rollouts)
        return self.control.rollouts(engine, start, problems, num_rollouts, self.seed)

    def _greedy(self, start: ThoughtState, problems: Sequence[Problem]) -> Rollouts:
        """The answers without sampling, from the prompts of the rollouts where their pass was not random."""
        if self.engine.sampler.prompt_sharing is not PromptSharing.ALL:
            questions, ids = [one.question for one in problems], [one.problem_id for one in problems]
            start = self.greedy_engine.start(questions, self.seed, ids)
        return self._draw(self.greedy_engine, start, problems, 1)

    def _scores(self, questions: Sequence[str], rollouts: Rollouts) -> Tensor | None:
        """Step scores (B, N, T), on the CPU."""
        model, latents, num_latents = self.reward_model, rollouts.latents, rollouts.num_latents
        if model is None:
            return None
        with self.clock.scoring():
            parts = self._over_rollouts(
                lambda first, end: model.score(questions, latents[:, first:end], num_latents[:, first:end]),
                len(questions),
                latents.shape[1],
            )
            return torch.cat(parts, dim=1).cpu()

    def _search(
        self,
        questions: Sequence[str],
        ids: list[str],
        start: ThoughtState,
        searches: dict[str, Search],
        drawn: Rollouts | None = None,
    ) -> dict[str, SearchResult]:
        scorer: Any = self.reward_model  # None only where no search needs one
        return {
            key: search.search(self.engine, scorer, questions, self.seed, ids, start, drawn)
            for key, search in searches.items()
        }

    def _over_rollouts(self, work: Callable[[int, int], R], num_problems: int, num_rollouts: int) -> list[R]:
        """Results of work on all N rollouts, or on some at a time where those of a single problem do not fit in memory."""
        return self._rollout_parts.run(work, num_rollouts) if num_problems == 1 else [work(0, num_rollouts)]

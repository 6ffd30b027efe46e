"""From problems to records: the journey of a batch of problems, each step one call.

problems -> prompts -> rollouts -> greedy answers -> written answers -> step scores -> searches -> records with chosen answers
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from latent_tts.aggregation import Aggregation
from latent_tts.answers import AnswerRule
from latent_tts.engine.engine import RolloutEngine, check_num_rollouts
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
from latent_tts.evaluation.steps import Steps
from latent_tts.evaluation.strategies import make_aggregations, of_search
from latent_tts.problems import Problem
from latent_tts.reward import LatentRewardModel
from latent_tts.search import Search, SearchResult


class Evaluator:
    """Makes a record of every problem.

    A record depends on the problem, the seed and the parts given here alone: neither on the batch, nor on what memory allows
    (a batch that does not fit is cut in parts). With an engine of `rollouts_per_part` problems are computed one at a time, and no
    part is cut.

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
        check_num_rollouts(num_rollouts)
        self.engine, self.reward_model, self.written_engine = engine, reward_model, written_engine
        if aggregations is None:
            aggregations = make_aggregations(None, scored=reward_model is not None)
        self.aggregations = list(aggregations)
        self.searches = {of_search(search): search for search in searches}
        self.num_rollouts, self.seed, self.answer_rule = num_rollouts, seed, answer_rule
        self.control, self.keep_latents = control, keep_latents
        self.thought: dict[str, KeptLatents] = {}
        self.kept: LatentFiles | None = None
        self.clock = RolloutClock()
        self._steps = Steps(engine, reward_model, self.clock, seed, control)
        self._problem_parts = FittingParts("problems", " A smaller --data.batch_size saves the attempt.")
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
            UserError: Not even one problem with one rollout, or with one part of them, fits in memory.
        """
        self.thought = {}
        per_part = self.engine.parts.size
        try:
            parts = self._problem_parts.run(
                lambda first, end: self._evaluate_or_complete(problems[first:end], earlier),
                len(problems),
                most=None if per_part is None else 1,
            )
        except DoesNotFitError as error:
            rollouts, smaller = "one rollout", ""
            if per_part is not None:
                rollouts, smaller = f"{per_part} rollouts", "a smaller --model.rollouts_per_part, "
            raise UserError(
                f"Not even one problem with {rollouts} fits in the memory of {self.engine.backbone.device}: take "
                f"{smaller}--model.dtype bfloat16, a smaller --model.max_answer_tokens, or a device with more room."
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
        started, steps = time.perf_counter(), self._steps
        start = steps.start(problems)
        rollouts = steps.rollouts(start, problems, self.num_rollouts)
        self.clock.add(started, len(problems) * self.num_rollouts, self.engine.backbone.device)
        drawn = Drawn(
            prompts=start.prompts,
            rollouts=rollouts,
            greedy=steps.greedy(start, problems),
            written=self._written(problems),
            scores=steps.scores(problems, rollouts),
            found=steps.search(problems, start, self._by_key(), rollouts),
        )
        self._note(problems, rollouts)
        records = [make_record(problem, i, drawn, self.answer_rule) for i, problem in enumerate(problems)]
        partners = {} if self.control is None else self.control.partners
        return [
            replace(one, chosen=choose(one, self.aggregations), latents_of=partners.get(one.problem_id))
            for one in records
        ]

    def _written(self, problems: Sequence[Problem]) -> Rollouts | None:
        """The greedy answers of the model that reasons in writing."""
        if self.written_engine is None:
            return None
        return self.written_engine.rollout([problem.question for problem in problems], num_rollouts=1)

    def _note(self, problems: Sequence[Problem], rollouts: Rollouts) -> None:
        if self.keep_latents:
            latents, counts = rollouts.latents.float().cpu(), rollouts.num_latents.cpu()
            self.thought |= {one.problem_id: KeptLatents(latents[i], counts[i]) for i, one in enumerate(problems)}

    # Completion -----------------------------------------------------------------------------------------------------

    def _complete(self, problems: Sequence[Problem], earlier: Sequence[Record], have: Have) -> list[Record]:
        """The records with what they lack; rollouts, answers and searches that they hold stay."""
        searches = {key: one for key, one in self._by_key().items() if key not in have.searches}
        thinks = have.num_rollouts < self.num_rollouts or (self.reward_model is not None and not have.scored)
        thinks = thinks or (self.keep_latents and not self._all_kept(problems, have.num_rollouts))
        start = self._steps.start(problems) if thinks or searches else None
        records = list(earlier)
        found: dict[str, SearchResult] = {}
        if start is not None:
            records = self._with_rollouts(problems, records, have, start) if thinks else records
            found = self._steps.search(problems, start, searches)
        written = None if have.written else self._written(problems)
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
        rollouts = restored_rollouts(earlier, self._latents(problems, have.num_rollouts, start))
        missing = self.num_rollouts - have.num_rollouts
        if missing:
            started = time.perf_counter()
            new = self._steps.rollouts(start, problems, missing, have.num_rollouts)
            self.clock.add(started, len(problems) * missing, self.engine.backbone.device)
            rollouts = join_rollouts([replace(rollouts, answer_ids=new.answer_ids[:, :0]), new])
        self._note(problems, rollouts)
        greedy = [record.greedy for record in earlier]
        drawn = Drawn(
            prompts=start.prompts,
            rollouts=rollouts,
            greedy=restored_answers(earlier, greedy, [record.token_steps.greedy for record in earlier]),
            written=None,
            # all of them again, packed as they would be: a score's last digit depends on what is scored beside it
            scores=self._steps.scores(problems, rollouts),
            found={},
        )
        return [make_record(problem, i, drawn, self.answer_rule) for i, problem in enumerate(problems)]

    def _latents(self, problems: Sequence[Problem], num_rollouts: int, start: ThoughtState) -> Tensor:
        """Of the first rollouts (B, n, T, D): as they are kept, or thought again."""
        if self.kept is None or not self._all_kept(problems, num_rollouts):
            return think(self.engine, start, num_rollouts)
        backbone = self.engine.backbone
        found = [self.kept.read(one.problem_id).latents[:num_rollouts] for one in problems]
        padded = [pad(one, (0, 0, 0, backbone.num_latents - one.shape[1])) for one in found]
        return torch.stack(padded).to(backbone.device, start.latents.dtype)

    def _all_kept(self, problems: Sequence[Problem], num_rollouts: int) -> bool:
        kept = self.kept
        return kept is not None and all(kept.num_rollouts(one.problem_id) >= num_rollouts for one in problems)

    def _by_key(self) -> dict[str, Search]:
        return {strategy.key: search for strategy, search in self.searches.items()}

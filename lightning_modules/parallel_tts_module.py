"""Parallel test-time scaling as a `predict` loop: problems in, one record a problem out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from latent_tts.answers import AnswerRule, answers_equal
from latent_tts.backbones import LatentBackbone, load_backbone
from latent_tts.backbones.fingerprint import fingerprint
from latent_tts.backbones.kinds import KindName
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.memory import DoesNotFitError, FittingParts
from latent_tts.engine.rollouts import Rollouts, join_rollouts
from latent_tts.engine.state import ThoughtState
from latent_tts.errors import UserError
from latent_tts.evaluation.report import label
from latent_tts.evaluation.run_folder import Record, Settings, flatten, rounded
from latent_tts.evaluation.strategies import Part, make_aggregations, make_searches
from latent_tts.evaluation.summary import EvaluationMetrics, choose
from latent_tts.metrics.diversity import step_diversity
from latent_tts.problems import Problem
from latent_tts.reward import LatentRewardModel, load_reward_model
from latent_tts.sampling import Deterministic, PromptSharing, Sampler

R = TypeVar("R")


class ParallelTTSModule(LightningModule):
    """Draws N latent rollouts of every problem, aggregates them, and measures how good the answers are.

    `predict_step` gives one record a problem (a line of `predictions/*.jsonl`):

        problem_id, question, gold
        greedy       {text, answer, correct} of the rollout without sampling
        written      {text, answer, correct, token_steps} of the model that reasons in writing, where one is given
        rollouts     N times {text, answer, correct, num_latents, step_scores (null without a reward model)}
        chosen       {aggregation: answer}
        search       {"beam_search@4x4": {text, answer, correct, token_steps}}, empty without searches
        diversity    mean pairwise cosine distance of the latents at each step, null where fewer than 2 rollouts have it
        token_steps  {rollouts, rollouts_shared, reward, reward_shared, greedy}: positions that went through the backbone for
                     the N rollouts, through the reward model for their scores (0 without one), how many of these once for
                     all N, and those of the greedy rollout

    The metrics count the records that the prediction writer hands them, so that a resumed run counts those on disk as well.

    Args:
        backbone: Folder or hub id of the latent reasoning model (published layout).
        sampler: How rollouts are made different: AdditiveGaussianNoise (sigma), MonteCarloDropout (p, sites, scope) or
            Deterministic.
        num_rollouts: N, rollouts of each problem.
        seed: Seed of every random draw; rollout n of a problem depends on nothing but this seed, the problem's id and n.
        max_answer_tokens: Answers are cut off after this many tokens.
        kind: Kind of the backbone, where its files do not say it; cot is written reasoning.
        num_latents: Latent thoughts per rollout (for CoLaR: the maximum); by default what the checkpoint says.
        dtype: Type the weights are held in and computed with; bfloat16 takes half the memory, and less time where the processor
            multiplies it faster (docs/performance.md says what it does to answers). Scores are computed in float32.
        aggregations: How the N rollouts become one answer: majority_voting, best_of_n, weighted_voting, hybrid, each as a name or
            as {name: best_of_n, reduction: mean}; by default all of them, without a reward model only majority_voting.
        reward_model: Folder or hub id of the latent reward model that scores the rollouts.
        search: Reward-guided searches to run beside the rollouts: beam_search, particle_filtering, each as a name or as
            {name: beam_search, num_beams: 4, num_candidates: 4}.
        written: Folder or hub id of a causal LM that reasons in writing (ChainOfThoughtModule trains one); its greedy answers
            are reported beside those of the latent model.
        max_written_tokens: Its steps and answer are cut off after this many tokens.
        answer_rule: When two answers are equal: tolerance compares values, strict is the published rule (equal floats).
        num_bootstrap: Bootstrap replicates behind each confidence interval.

    Raises:
        UserError: Any of these does not exist, does not fit the others, or is out of its range.
    """

    def __init__(
        self,
        backbone: str | LatentBackbone,
        sampler: Sampler,
        num_rollouts: int = 16,
        seed: int = 0,
        max_answer_tokens: int = 64,
        kind: KindName | None = None,
        num_latents: int | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        aggregations: list[Part] | None = None,
        reward_model: str | None = None,
        search: list[Part] | None = None,
        written: str | None = None,
        max_written_tokens: int = 256,
        answer_rule: AnswerRule = "tolerance",
        num_bootstrap: int = 1000,
    ) -> None:
        super().__init__()
        if num_rollouts < 1:
            raise UserError(
                f"num_rollouts must be at least 1, got {num_rollouts}: it is the number of rollouts of each problem."
            )
        self.num_rollouts, self.seed, self.answer_rule = num_rollouts, seed, answer_rule
        self.aggregations = make_aggregations(aggregations, scored=reward_model is not None)
        self.backbone = load_backbone(backbone, kind, num_latents, dtype) if isinstance(backbone, str) else backbone
        self.backbone.freeze()
        self.reward_model = None if reward_model is None else self._load_reward_model(reward_model, dtype)
        self.searches = make_searches(search or [], scored=reward_model is not None)
        self.engine = RolloutEngine(self.backbone, sampler, max_answer_tokens)
        self.greedy_engine = RolloutEngine(self.backbone, Deterministic(), max_answer_tokens)
        self.written = None if written is None else load_backbone(written, "cot", dtype=dtype).freeze()
        self.max_written_tokens = max_written_tokens
        self.written_engine = (
            None if self.written is None else RolloutEngine(self.written, max_answer_tokens=max_written_tokens)
        )
        self.metrics = EvaluationMetrics(
            num_rollouts,
            self.backbone.num_latents,
            self.aggregations,
            [search.name for search in self.searches],
            num_bootstrap,
            written=written is not None,
        )
        self.rollout_seconds, self.rollouts_drawn = 0.0, 0
        self._problem_parts = FittingParts("problems", " A smaller --data.batch_size saves the attempt.")
        self._rollout_parts = FittingParts("rollouts of one problem")

    def settings(self) -> Settings:
        """Everything the records depend on, by option name; see `latent_tts.evaluation.run_folder`."""
        return flatten(
            {
                "model": {
                    "backbone": {"fingerprint": self._fingerprints[0]},
                    "num_latents": self.backbone.num_latents,
                    "sampler": self.engine.sampler.settings(),
                    "num_rollouts": self.num_rollouts,
                    "seed": self.seed,
                    "max_answer_tokens": self.engine.max_answer_tokens,
                    "aggregations": [repr(part) for part in self.aggregations],
                    "search": [repr(part) for part in self.searches],
                    "answer_rule": self.answer_rule,
                    "reward_model": {"fingerprint": self._fingerprints[1]},
                }
                | self._written_settings()
            }
        )

    def _written_settings(self) -> Settings:
        if self.written is None:
            return {}
        return {"written": {"fingerprint": self._fingerprints[2], "max_written_tokens": self.max_written_tokens}}

    @cached_property
    def _fingerprints(self) -> tuple[str, str | None, str | None]:
        """Of backbone, reward model and written reasoning, taken once: hashing a large model takes seconds."""
        scorer, written = self.reward_model, self.written
        return (
            self.backbone.fingerprint()[:16],
            None if scorer is None else fingerprint(scorer.state_dict())[:16],
            None if written is None else written.fingerprint()[:16],
        )

    def predict_step(self, batch: list[Problem], batch_idx: int = 0) -> list[Record]:
        """One record a problem, in the batch's order; a batch that does not fit in memory is cut in parts."""
        try:
            parts = self._problem_parts.run(lambda first, end: self._records(batch[first:end]), len(batch))
        except DoesNotFitError as error:
            raise UserError(
                f"Not even one problem with one rollout fits in the memory of {self.device}: take --model.dtype bfloat16, a "
                "smaller --model.max_answer_tokens, or a device with more room."
            ) from error
        return [record for part in parts for record in part]

    def _records(self, batch: Sequence[Problem]) -> list[Record]:
        questions, ids = [problem.question for problem in batch], [problem.problem_id for problem in batch]
        started = time.perf_counter()
        start = self.engine.start(questions, self.seed, ids)
        rollouts = self._rollouts(start, ids)
        self._clock(started, len(batch) * self.num_rollouts)
        greedy = self._greedy(start, questions, ids)
        records = [self._record(problem, i, rollouts, greedy) for i, problem in enumerate(batch)]
        if self.written_engine is not None:
            self._add_written(records, batch)
        if self.reward_model is not None:
            self._add_scores(records, questions, rollouts)
            self._add_searches(records, batch, start)
        self._add_shared_positions(records, questions)
        return [record | {"chosen": choose(record, self.aggregations)} for record in records]

    @property
    def rollouts_per_second(self) -> float | None:
        """Rollouts of this process per second spent in drawing them; None before the first."""
        return self.rollouts_drawn / self.rollout_seconds if self.rollouts_drawn else None

    def progress_news(self) -> str:
        """How the answers fare so far, on this process."""
        names = [
            "greedy",
            *(f"{part.name}@{self.num_rollouts}" for part in self.aggregations[:1]),
            f"coverage@{self.num_rollouts}",
        ]
        if not self.metrics.num_problems:
            return ""
        return " · ".join(f"{label(name)} {100 * self.metrics.running_mean(name):.0f} %" for name in names)

    def _load_reward_model(self, name: str, dtype: str) -> LatentRewardModel:
        reward_model = load_reward_model(name, self.backbone.tokenizer, dtype)
        if reward_model.hidden_size != self.backbone.hidden_size:
            raise UserError(
                f"The reward model {name} scores latents of size {reward_model.hidden_size}, but the backbone's have "
                f"{self.backbone.hidden_size}: use the reward model trained for this backbone."
            )
        trained_for = reward_model.backbone_fingerprint
        if trained_for is not None and trained_for != self.backbone.fingerprint():
            rank_zero_warn(
                f"The reward model {name} was trained for another backbone than this one: its scores may mean little."
            )
        return reward_model.freeze()

    def _over_rollouts(self, work: Callable[[int, int], R], num_problems: int) -> list[R]:
        """Results of work on all N rollouts, or on some at a time where those of a single problem do not fit in memory."""
        return self._rollout_parts.run(work, self.num_rollouts) if num_problems == 1 else [work(0, self.num_rollouts)]

    # Parts of a step --------------------------------------------------------------------------------------------------

    def _rollouts(self, start: ThoughtState, ids: list[str]) -> Rollouts:
        parts = self._over_rollouts(lambda first, end: self.engine.rollout_from(start, end - first, first), len(ids))
        return join_rollouts(parts)

    def _clock(self, started: float, num_rollouts: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.rollout_seconds += time.perf_counter() - started
        self.rollouts_drawn += num_rollouts

    def _greedy(self, start: ThoughtState, questions: Sequence[str], ids: list[str]) -> Rollouts:
        """The answers without sampling, from the prompts of the rollouts where their pass was not random."""
        if self.engine.sampler.prompt_sharing is PromptSharing.ALL:
            return self.greedy_engine.rollout_from(start, 1)
        return self.greedy_engine.rollout(questions, 1, self.seed, ids)

    def _record(self, problem: Problem, i: int, rollouts: Rollouts, greedy: Rollouts) -> Record:
        lengths = rollouts.num_latents[i].tolist()
        per_step = step_diversity(rollouts.latents[i], rollouts.num_latents[i]).tolist()
        return {
            "problem_id": problem.problem_id,
            "question": problem.question,
            "gold": problem.gold,
            "greedy": self._answer(problem, greedy.texts[i][0], greedy.answers[i][0]),
            "rollouts": [
                self._answer(problem, text, answer) | {"num_latents": length, "step_scores": None}
                for text, answer, length in zip(rollouts.texts[i], rollouts.answers[i], lengths, strict=True)
            ],
            "search": {},
            "diversity": rounded([None if math.isnan(value) else value for value in per_step]),
            "token_steps": {
                "rollouts": int(rollouts.token_steps[i]),
                "rollouts_shared": 0,
                "reward": 0,
                "reward_shared": 0,
                "greedy": int(greedy.token_steps[i]),
            },
        }

    def _add_written(self, records: Sequence[Record], batch: Sequence[Problem]) -> None:
        assert self.written_engine is not None
        chains = self.written_engine.rollout([problem.question for problem in batch], num_rollouts=1)
        for i, (record, problem) in enumerate(zip(records, batch, strict=True)):
            answer = self._answer(problem, chains.texts[i][0], chains.answers[i][0])
            record["written"] = answer | {"token_steps": int(chains.token_steps[i])}

    def _add_scores(self, records: Sequence[Record], questions: Sequence[str], rollouts: Rollouts) -> None:
        model, latents, num_latents = self.reward_model, rollouts.latents, rollouts.num_latents
        assert model is not None
        parts = self._over_rollouts(
            lambda first, end: model.score(questions, latents[:, first:end], num_latents[:, first:end]), len(questions)
        )
        scores = torch.cat(parts, dim=1)  # (B, N, T)
        for record, of_problem in zip(records, scores.tolist(), strict=True):
            for rollout, steps in zip(record["rollouts"], of_problem, strict=True):
                rollout["step_scores"] = rounded(steps[: rollout["num_latents"]])

    def _add_searches(self, records: Sequence[Record], batch: Sequence[Problem], start: ThoughtState) -> None:
        questions, ids = [problem.question for problem in batch], [problem.problem_id for problem in batch]
        assert self.reward_model is not None
        for search in self.searches:
            result = search.search(self.engine, self.reward_model, questions, self.seed, ids, start)
            found = zip(records, batch, result.texts, result.answers, result.token_steps.tolist(), strict=True)
            for record, problem, text, answer, steps in found:
                record["search"][search.name] = self._answer(problem, text, answer) | {"token_steps": steps}

    def _add_shared_positions(self, records: Sequence[Record], questions: Sequence[str]) -> None:
        """Positions that go through a model once for all N rollouts: the prompt, as far as its pass is not random."""
        sharing = self.engine.sampler.prompt_sharing
        for record, prompt in zip(records, self.backbone.encode_prompts(questions), strict=True):
            steps = record["token_steps"]
            steps["rollouts_shared"] = sharing.num_shared(len(prompt))
            if self.reward_model is not None:
                steps["reward_shared"] = len(prompt)
                steps["reward"] = len(prompt) + sum(rollout["num_latents"] for rollout in record["rollouts"])

    def _answer(self, problem: Problem, text: str, answer: float | None) -> Record:
        return {"text": text, "answer": answer, "correct": answers_equal(answer, problem.gold, self.answer_rule)}

"""Parallel test-time scaling as a `predict` loop: problems in, one record a problem out."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from latent_tts.aggregation import AGGREGATIONS
from latent_tts.answers import AnswerRule
from latent_tts.backbones import LatentBackbone, load_backbone
from latent_tts.backbones.fingerprint import fingerprint
from latent_tts.backbones.kinds import KindName
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.prompts import PromptRoom
from latent_tts.errors import UserError
from latent_tts.evaluation.completion import Earlier
from latent_tts.evaluation.controls import ControlName, control_of, other_problems
from latent_tts.evaluation.evaluator import Evaluator
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.settings import Settings, flatten
from latent_tts.evaluation.strategies import Part, make_aggregations, make_searches, part_of
from latent_tts.evaluation.summary import EvaluationMetrics, RunningMetrics
from latent_tts.problems import Problem
from latent_tts.reward import LatentRewardModel, load_reward_model
from latent_tts.sampling import SAMPLERS, AnswerSampler, Sampler
from latent_tts.search import SEARCHES

DEFAULT_WRITTEN_TOKENS = 256


class ParallelTTSModule(LightningModule):
    """Draws N latent rollouts of every problem, aggregates them, and measures how good the answers are.

    `predict_step` gives one record a problem, a line of `predictions/*.jsonl`: `latent_tts.evaluation.records.Record` says what
    it holds, and `latent_tts.evaluation.evaluator.Evaluator`, which a notebook can call as well, makes it.

    `metrics` is what is shown while a run goes on: the strategies at their full budget, over the records that the prediction
    writer hands it, those on disk as well. Curves over k and all else are summed up at the end, by `empty_metrics`, so that none
    of it stands between two batches.

    Args:
        backbone: Folder or hub id of the latent reasoning model (published layout).
        sampler: How rollouts are made different, with options of its own (docs/samplers.md): SAMPLERS.
        num_rollouts: N, rollouts of each problem.
        seed: Seed of every random draw; rollout n of a problem depends on nothing but this seed, the problem's id and n.
        max_answer_tokens: Answers are cut off after this many tokens.
        kind: Kind of the backbone, where its files do not say it; cot is written reasoning.
        num_latents: Latent thoughts per rollout (for CoLaR: the maximum); by default what the checkpoint says.
        revision: Commit, branch or tag of the backbone, where it is a hub id; by default the newest.
        dtype: Type the weights are held in and computed with; bfloat16 takes half the memory, and less time where the processor
            multiplies it faster (docs/performance.md says what it does to answers). Scores are computed in float32.
        aggregations: How the N rollouts become one answer: AGGREGATIONS, each as a name or
            as {name: best_of_n, reduction: mean}; by default all but adaptive_voting, without a reward
            model only majority_voting.
        reward_model: Folder or hub id (owner/name, or owner/name@revision) of the latent reward model that scores the rollouts.
        search: Searches to run beside the rollouts: SEARCHES, each as a name or as
            {name: beam_search, num_beams: 4, num_candidates: 4}; all but adaptive_rollouts are guided by the reward model.
        written: Folder or hub id of a causal LM that reasons in writing (ChainOfThoughtModule trains one); its greedy answers
            are reported beside those of the latent model.
        max_written_tokens: Its steps and answer are cut off after this many tokens.
        answer_rule: When two answers are equal: tolerance compares values, strict is the published rule (equal floats).
        answer_sampler: How the answer tokens of rollouts and searches are drawn (temperature, top_p); by default they are the
            most probable ones. The greedy answer always is.
        keep_latents: Whether the latents of all rollouts are kept beside the records (docs/runs.md says how large they are).
        latent_control: Whether answers owe anything to the latents: they are decoded after zero (zeros), shuffle (the thoughts on
            the problem before in the data) or truncate (the first truncate_after thoughts) in place of what was thought.
        truncate_after: Thoughts that latent_control truncate leaves, from 0.
        rollouts_per_part: Rollouts of one problem that are always computed together and with no other problem's, so that on a GPU
            too they depend on nothing that is drawn beside them (docs/performance.md, Parts of one size); those of a last
            part beyond num_rollouts are dropped. By default batches take any shape, and a rollout is the same to rounding.

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
        revision: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        aggregations: list[Part] | None = None,
        reward_model: str | LatentRewardModel | None = None,
        search: list[Part] | None = None,
        written: str | LatentBackbone | None = None,
        max_written_tokens: int = DEFAULT_WRITTEN_TOKENS,
        answer_rule: AnswerRule = "tolerance",
        answer_sampler: AnswerSampler | None = None,
        keep_latents: bool = False,
        latent_control: ControlName | None = None,
        truncate_after: int | None = None,
        rollouts_per_part: int | None = None,
    ) -> None:
        super().__init__()
        control = control_of(latent_control, truncate_after)
        if written is None and max_written_tokens != DEFAULT_WRITTEN_TOKENS:
            raise UserError(
                f"max_written_tokens {max_written_tokens} is for --model.written: give both, or neither of them."
            )
        scored = reward_model is not None
        parts, searches = make_aggregations(aggregations, scored), make_searches(search or [], scored)
        self.backbone = (
            load_backbone(backbone, kind, num_latents, dtype, revision) if isinstance(backbone, str) else backbone
        )
        self.backbone.freeze()
        self.reward_model = (
            self._load_reward_model(reward_model, dtype) if isinstance(reward_model, str) else reward_model
        )
        self.written = load_backbone(written, "cot", dtype=dtype).freeze() if isinstance(written, str) else written
        self.evaluator = Evaluator(
            RolloutEngine(self.backbone, sampler, max_answer_tokens, answer_sampler, rollouts_per_part),
            self.reward_model,
            parts,
            searches,
            num_rollouts,
            seed,
            answer_rule,
            None if self.written is None else RolloutEngine(self.written, max_answer_tokens=max_written_tokens),
            control,
            keep_latents,
        )
        self.earlier: Earlier | None = None
        self._names = [name if isinstance(name, str) else None for name in (backbone, reward_model, written)]
        shown, is_written = list(self.evaluator.searches), self.written is not None
        self.metrics = RunningMetrics(num_rollouts, parts, shown, is_written, ks=[num_rollouts])

    def empty_metrics(self) -> EvaluationMetrics:
        """Metrics of this run's records that have counted nothing."""
        evaluator, is_written = self.evaluator, self.written is not None
        searches, num_latents = list(evaluator.searches), self.backbone.num_latents
        return EvaluationMetrics(evaluator.num_rollouts, num_latents, evaluator.aggregations, searches, is_written)

    def settings(self) -> Settings:
        """Everything the records depend on, by option name; see `latent_tts.evaluation.settings`."""
        evaluator = self.evaluator
        return flatten(
            {
                "model": {
                    "backbone": {"fingerprint": self._fingerprints[0]},
                    "num_latents": self.backbone.num_latents,
                    "sampler": evaluator.engine.sampler.settings(),
                    "num_rollouts": evaluator.num_rollouts,
                    "seed": evaluator.seed,
                    "max_answer_tokens": evaluator.engine.max_answer_tokens,
                    "aggregations": [part_of(part) for part in evaluator.aggregations],
                    "search": [part_of(search) for search in evaluator.searches.values()],
                    "answer_rule": evaluator.answer_rule,
                    "reward_model": {"fingerprint": self._fingerprints[1]},
                }
                | self._answer_settings()
                | self._part_settings()
                | self._written_settings()
                | self._control_settings()
                | ({"keep_latents": True} if evaluator.keep_latents else {})
            }
        )

    def _answer_settings(self) -> Settings:
        drawn = self._answer_sampler()
        return {} if drawn is None else {"answer_sampler": drawn}

    def _part_settings(self) -> Settings:
        size = self.evaluator.engine.parts.size
        return {} if size is None else {"rollouts_per_part": size}

    def _control_settings(self) -> Settings:
        control = self.evaluator.control
        return {} if control is None else control.settings()

    def _written_settings(self) -> Settings:
        engine = self.evaluator.written_engine
        if engine is None:
            return {}
        return {"written": {"fingerprint": self._fingerprints[2], "max_written_tokens": engine.max_answer_tokens}}

    def evaluated(self) -> dict[str, Any]:
        """What is evaluated, for metrics.json and run.json."""
        models = (self.backbone, self.reward_model, self.written)
        backbone, reward_model, written = (
            {"name": name, "fingerprint": found, "commit": getattr(model, "commit", None)}
            for name, found, model in zip(self._names, self._fingerprints, models, strict=True)
        )
        form = {"kind": self.backbone.kind, "num_latents": self.backbone.num_latents}
        return {
            "backbone": backbone | form,
            "reward_model": None if self.reward_model is None else reward_model,
            "written": None if self.written is None else written,
            "sampler": self.evaluator.engine.sampler.settings(),
            "answer_sampler": self._answer_sampler(),
            "seed": self.evaluator.seed,
            "answer_rule": self.evaluator.answer_rule,
        } | self._control_settings()

    def _answer_sampler(self) -> dict[str, float] | None:
        sampler = self.evaluator.engine.answer_sampler
        return None if sampler is None else asdict(sampler)

    def fingerprint(self) -> str:
        """Of all models, as the settings name them."""
        return " ".join(filter(None, self._fingerprints))

    @cached_property
    def _fingerprints(self) -> tuple[str, str | None, str | None]:
        """Of backbone, reward model and written reasoning, taken once: hashing a large model takes seconds."""
        scorer, written = self.reward_model, self.written
        return (
            self.backbone.fingerprint()[:16],
            None if scorer is None else fingerprint(scorer.state_dict())[:16],
            None if written is None else written.fingerprint()[:16],
        )

    def prompt_rooms(self) -> list[PromptRoom]:
        """How long a question may be, for each model that reads it."""
        engine, written, scorer = self.evaluator.engine, self.evaluator.written_engine, self.reward_model
        rooms = [PromptRoom.of("backbone", engine.backbone, engine.max_answer_tokens)]
        if written is not None:
            rooms.append(PromptRoom.of("written backbone", written.backbone, written.max_answer_tokens))
        return rooms if scorer is None else [*rooms, scorer.prompt_room(self.backbone.num_latents)]

    def setup(self, stage: str) -> None:
        """Lets a control that pairs problems read them."""
        self.partners()

    def partners(self) -> dict[str, str]:
        """By problem id the problem whose thoughts a control feeds; empty without one that pairs problems.

        Raises:
            UserError: There is no data module to read them from, or but one question in it.
        """
        control = self.evaluator.control
        if control is None or control.name != "shuffle":
            return {}
        if not control.others:
            data: Any = getattr(self.trainer, "datamodule", None)
            if data is None:
                raise UserError("latent_control shuffle pairs the problems of a data module: give the trainer one.")
            control.others = other_problems(data.problems())
        return control.partners

    def predict_step(self, batch: list[Problem], batch_idx: int = 0) -> list[Record]:
        """One record a problem, in the batch's order."""
        return self.evaluator.evaluate(batch, self.earlier)

    @property
    def rollouts_per_second(self) -> float | None:
        """Rollouts of this process per second spent in drawing them; None before the first."""
        return self.evaluator.clock.rollouts_per_second

    @property
    def speeds(self) -> dict[str, float]:
        """Rollouts of this process per second, without and with their scores; empty before the first."""
        return self.evaluator.clock.speeds

    def progress_news(self) -> str:
        """How the answers fare so far, on this process."""
        if not self.metrics.num_problems:
            return ""
        found = list(self.metrics.so_far().items())
        voting = [pair for pair in found if pair[0].kind == "aggregation"][:1]
        shown = [found[0], *voting, found[-1]]  # greedy, the first aggregation, coverage
        return " · ".join(f"{one.label()} {100 * interval.mean:.0f} %" for one, interval in shown)

    def _load_reward_model(self, name: str, dtype: str) -> LatentRewardModel:
        reward_model = load_reward_model(name, self.backbone.tokenizer, dtype)
        trained_for = reward_model.backbone_fingerprint
        if trained_for is not None and trained_for != self.backbone.fingerprint():
            rank_zero_warn(
                f"The reward model {name} was trained for another backbone than this one: its scores may mean little."
            )
        return reward_model.freeze()


# The help of the command line is read off the docstring; what there is to choose from is read off the registries.
for _word, _names in {"AGGREGATIONS": [*AGGREGATIONS], "SEARCHES": [*SEARCHES], "SAMPLERS": [*SAMPLERS]}.items():
    ParallelTTSModule.__doc__ = str(ParallelTTSModule.__doc__).replace(_word, ", ".join(_names))

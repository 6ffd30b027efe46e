"""From prediction records to the numbers of an evaluation: every metric is a function of the records on disk.

A run feeds each record here once, when it is written or, in a resumed run, when it is read back: both take the same way, so
the numbers of a run that was killed are those of one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, SumMetric

from latent_tts.aggregation import Aggregation, k_grid
from latent_tts.evaluation.run_folder import Record, rounded
from latent_tts.metrics.bootstrap import BootstrapIntervals, Interval
from latent_tts.metrics.coverage import coverage_at
from latent_tts.metrics.diversity import Diversity
from latent_tts.metrics.head_room import head_room_recovered
from latent_tts.metrics.invalid_answers import InvalidAnswerRate

BASELINE = "majority_voting"  # what other strategies are compared with, pair by pair


def record_scores(record: Record) -> tuple[Tensor | None, Tensor | None]:
    """Step scores (N, T) of a record, 0 where masked, and their mask; None where no reward model scored the rollouts."""
    steps = [rollout.get("step_scores") for rollout in record["rollouts"]]
    if steps[0] is None:
        return None, None
    rows = [torch.tensor(row, dtype=torch.float64) for row in steps]
    scores = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return scores, torch.arange(scores.shape[1]) < lengths[:, None]


def choose(record: Record, aggregations: Sequence[Aggregation]) -> dict[str, float | None]:
    """The answer of every aggregation for a record: its field `chosen`."""
    answers = [rollout["answer"] for rollout in record["rollouts"]]
    scores, mask = record_scores(record)
    return {part.name: part.choose(answers, scores, mask).answer for part in aggregations}


def accuracy_values(record: Record, aggregations: Sequence[Aggregation], ks: Sequence[int]) -> dict[str, float]:
    """How good every strategy is on one problem, by name: `greedy`, `single`, `coverage@4`, `best_of_n@4`, `beam_search@4x4`."""
    answers = [rollout["answer"] for rollout in record["rollouts"]]
    correct = [rollout["correct"] for rollout in record["rollouts"]]
    scores, mask = record_scores(record)
    key = int.from_bytes(blake2b(record["problem_id"].encode(), digest_size=7).digest(), "little")
    values = {"greedy": float(record["greedy"]["correct"]), "single": sum(correct) / len(correct)}
    values |= {"written": float(record["written"]["correct"])} if "written" in record else {}
    values |= {
        f"coverage@{k}": v for k, v in zip(ks, coverage_at(torch.tensor([correct]), ks)[0].tolist(), strict=True)
    }
    for part in aggregations:
        expected = part.expected_accuracy(answers, correct, scores, mask, ks, key)
        values |= {f"{part.name}@{k}": v for k, v in zip(ks, expected, strict=True)}
    return values | {name: float(result["correct"]) for name, result in record["search"].items()}


def token_step_values(record: Record, aggregations: Sequence[Aggregation], ks: Sequence[int]) -> dict[str, float]:
    """Compute of every strategy on one problem, in positions that went through a model; for k of N rollouts its expectation.

    Strategies that need scores pay for the reward model's positions too.
    """
    steps, num_rollouts = record["token_steps"], len(record["rollouts"])
    drawn = [_cost_of_subset(steps["rollouts"], steps["rollouts_shared"], k / num_rollouts) for k in ks]
    scored = [_cost_of_subset(steps["reward"], steps["reward_shared"], k / num_rollouts) for k in ks]
    values = {"greedy": float(steps["greedy"])} | {f"rollouts@{k}": cost for k, cost in zip(ks, drawn, strict=True)}
    values |= {"written": float(record["written"]["token_steps"])} if "written" in record else {}
    for part in aggregations:
        costs = [a + b for a, b in zip(drawn, scored, strict=True)] if part.needs_scores else drawn
        values |= {f"{part.name}@{k}": cost for k, cost in zip(ks, costs, strict=True)}
    return values | {name: float(result["token_steps"]) for name, result in record["search"].items()}


def _cost_of_subset(total: int, shared: int, share: float) -> float:
    """What is shared is paid once, of the rest the share of the rollouts."""
    return shared + share * (total - shared)


class EvaluationMetrics:
    """Streams records into torchmetrics of fixed size and turns them into the content of metrics.json.

    States live on the CPU in float64 whatever the model runs in; `compute` sums them over ranks on the device it is given.

    Args:
        num_rollouts: N.
        num_latents: T, the largest number of latents a rollout can have.
        aggregations: What is done with the N rollouts.
        searches: Names of the searches of each record, such as `beam_search@4x4`.
        num_bootstrap: Bootstrap replicates behind each interval.
        written: Whether each record holds the answer of a model that reasons in writing.
    """

    def __init__(
        self,
        num_rollouts: int,
        num_latents: int,
        aggregations: Sequence[Aggregation],
        searches: Sequence[str] = (),
        num_bootstrap: int = 1000,
        written: bool = False,
    ) -> None:
        self.num_rollouts = num_rollouts
        self.aggregations = list(aggregations)
        self.searches = list(searches)
        self.points = ["greedy", "written"] if written else ["greedy"]  # one answer a problem
        self.ks = k_grid(num_rollouts)
        curves = ["coverage", *(part.name for part in aggregations)]
        accuracies = [*self.points, "single", *(f"{name}@{k}" for name in curves for k in self.ks), *searches]
        costs = [*self.points, *(f"{name}@{k}" for name in ["rollouts", *curves[1:]] for k in self.ks), *searches]
        self.accuracy = BootstrapIntervals(accuracies, num_bootstrap)
        self.token_steps = BootstrapIntervals(costs, num_replicates=1)  # only its means are read
        self.diversity = Diversity(num_latents)
        self.invalid = InvalidAnswerRate()
        self.count = SumMetric()

    @property
    def num_problems(self) -> int:
        """Problems this process has counted."""
        return int(self.count.sum_value)

    def running_mean(self, name: str) -> float:
        """The mean of a value over the problems this process has counted."""
        return float(self.accuracy.sums[self.accuracy.names.index(name)] / self.accuracy.count)

    def update_from_record(self, record: Record) -> None:
        """Counts one problem."""
        accuracy = accuracy_values(record, self.aggregations, self.ks)
        cost = token_step_values(record, self.aggregations, self.ks)
        self.accuracy.update([record["problem_id"]], _row(accuracy, self.accuracy.names))
        self.token_steps.update([record["problem_id"]], _row(cost, self.token_steps.names))
        per_step = [math.nan if value is None else value for value in record["diversity"]]
        self.diversity.update(torch.tensor([per_step], dtype=torch.float64))
        self.invalid.update([[rollout["answer"] for rollout in record["rollouts"]]])
        self.count.update(1)

    def compute(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The content of metrics.json but for the throughput, summed over ranks; a collective where there are several."""
        parts: list[Metric] = [self.accuracy, self.token_steps, self.diversity, self.invalid, self.count]
        results, costs, diversity, invalid, count = (part.to(device).compute() for part in parts)
        for part in parts:
            part.to("cpu")
        mean = dict(zip(results.names, results.means.tolist(), strict=True))
        intervals = {name: results.interval(name) for name in results.names}
        summary = {
            "num_problems": int(count),
            "num_rollouts": self.num_rollouts,
            "invalid_answer_rate": float(invalid),
            "coverage": self._curve(mean, "coverage"),
            "accuracy": {
                **{name: mean[name] for name in self.points},
                "single": mean["single"],
                **{part.name: self._curve(mean, part.name) for part in self.aggregations},
                **_by_budget({name: mean[name] for name in self.searches}),
            },
            "confidence_interval": {name: _bounds(interval) for name, interval in intervals.items()},
            "difference_to_majority_voting": {
                name: {"mean": difference.mean, "interval": _bounds(difference)}
                for name, difference in self._differences(results).items()
            },
            "head_room_recovered": self._head_room(mean),
            "diversity": {"mean": float(diversity["mean"]), "per_step": diversity["per_step"].tolist()},
            "token_steps": self._costs(dict(zip(costs.names, costs.means.tolist(), strict=True))),
        }
        finite: dict[str, Any] = rounded(_finite(summary))
        return finite

    def _curve(self, values: dict[str, float], name: str) -> dict[str, float]:
        return {str(k): values[f"{name}@{k}"] for k in self.ks}

    def _final_names(self) -> list[str]:
        """Every strategy at its largest budget."""
        return [*(f"{part.name}@{self.num_rollouts}" for part in self.aggregations), *self.searches]

    def _differences(self, results: Any) -> dict[str, Interval]:
        baseline = f"{BASELINE}@{self.num_rollouts}"
        others = [*self.points, "single", *self._final_names()]
        known = baseline in results.names
        return {name: results.difference(name, baseline) for name in others if name != baseline} if known else {}

    def _head_room(self, mean: dict[str, float]) -> dict[str, float | None]:
        top = mean[f"coverage@{self.num_rollouts}"]
        return {
            name.removesuffix(f"@{self.num_rollouts}") if name not in self.searches else name: head_room_recovered(
                mean[name], mean["single"], top
            )
            for name in self._final_names()
        }

    def _costs(self, mean: dict[str, float]) -> dict[str, Any]:
        curves = {name: self._curve(mean, name) for name in ["rollouts", *(part.name for part in self.aggregations)]}
        return {
            **{name: mean[name] for name in self.points},
            **curves,
            **_by_budget({name: mean[name] for name in self.searches}),
        }


def _row(values: dict[str, float], names: Sequence[str]) -> Tensor:
    return torch.tensor([[values[name] for name in names]], dtype=torch.float64)  # (1, K)


def _by_budget(values: dict[str, float]) -> dict[str, dict[str, float]]:
    """`beam_search@4x4` -> {"beam_search": {"4x4": value}}."""
    nested: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        method, _, budget = name.partition("@")
        nested.setdefault(method, {})[budget] = value
    return nested


def _bounds(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _finite(value: Any) -> Any:
    """NaN as None, which JSON knows."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value

"""A large evaluation on paper: bytes, files, memory, hours and the part that is full first, from what one record costs here.

    python -m benchmarks.scaling                                       # a million problems x 1,024 rollouts on 64 GPUs
    python -m benchmarks.scaling --problems 1319 --rollouts 64 --ranks 1 --rate 61

What a record takes - bytes on disk, processor seconds to write, to read back, to sum up, and to hold for a report's table and
page - is measured on made-up records of the asked size; rollouts a second of a device (--rate) is an assumption, and named as
such in the table. Everything else is arithmetic, and each row says which.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.common import arguments, show
from latent_tts.aggregation import AGGREGATIONS
from latent_tts.evaluation.problem_values import choose
from latent_tts.evaluation.records import AnswerRecord, Record, RolloutRecord, TokenSteps
from latent_tts.evaluation.report import ReportRecords
from latent_tts.evaluation.summary import EvaluationMetrics

QUESTION = (
    "A baker has 16 trays of 12 rolls. He sells three trays in the morning and eats four rolls. How many are left? "
)
ID_BYTES = 160
"""Bytes that the set of finished problems takes for each: an id of 64 characters as a Python string, its place in the set."""

SCORE_BYTES = 9
"""Bytes that a rollout takes in the table of the figures: its last score, whether it is right, its problem."""
CORES = 16
"""Of the machine that a report is made on anew."""


@dataclass(frozen=True)
class Costs:
    """What one record takes: bytes of its line, and processor seconds."""

    line_bytes: float
    write: float
    read: float
    choose: float
    sum_up: float
    hold: float


@dataclass(frozen=True)
class Plan:
    """An evaluation: problems, rollouts of each, thoughts of each rollout, width of a thought, processes, and their speed."""

    problems: int
    rollouts: int
    latents: int
    width: int
    ranks: int
    rate: float


def made_up(seed: int, num_rollouts: int, num_latents: int) -> Record:
    """A record as a scored evaluation of GSM8K writes it: answers of which a quarter is right, scores of six digits."""
    rng = random.Random(seed)
    answers = [72.0 if rng.random() < 0.25 else float(rng.choice([36, 144, 18, 9, 720])) for _ in range(num_rollouts)]
    rollouts = tuple(
        RolloutRecord(f"### {answer:g}", answer, answer == 72.0, num_latents, tuple(
            round(rng.gauss(0, 1), 5) for _ in range(num_latents)
        ))
        for answer in answers
    )  # fmt: skip
    steps = TokenSteps(80 + 12 * num_rollouts, 80, 80 + num_latents * num_rollouts, 80, 92)
    diversity = tuple(round(rng.random(), 6) for _ in range(num_latents))
    problem = (f"{seed:064d}", QUESTION * 2, 72.0)
    return Record(*problem, AnswerRecord("### 72", 72.0, True), rollouts, {}, diversity, steps, {})


def measured(num_rollouts: int, num_latents: int, count: int) -> Costs:
    """Costs of a record, means over ``count``, in processor seconds of this machine."""
    parts = [AGGREGATIONS[name]() for name in AGGREGATIONS]
    records = [made_up(seed, num_rollouts, num_latents) for seed in range(count)]
    metrics = EvaluationMetrics(num_rollouts, num_latents, parts)

    def seconds(work: Callable[[Any], object], items: list[Any]) -> tuple[float, list[Any]]:
        start = time.process_time()
        results = [work(item) for item in items]
        return (time.process_time() - start) / len(items), results

    choosing, chosen = seconds(lambda record: replace(record, chosen=choose(record, parts)), records)
    writing, lines = seconds(lambda record: json.dumps(record.to_json(), ensure_ascii=False).encode() + b"\n", chosen)
    reading, again = seconds(lambda line: Record.from_json(json.loads(line)), lines)
    metrics.update(again[0])  # tables of binomials are made once
    summing, _ = seconds(metrics.update, again)
    held = ReportRecords(metrics.choosing(num_rollouts), "tolerance")
    holding, _ = seconds(lambda records: ([held.add(one) for one in records], held.rows.table()), [again])
    return Costs(sum(map(len, lines)) / count, writing, reading, choosing, summing, holding / count)


def table(plan: Plan, costs: Costs) -> list[dict[str, Any]]:
    """Quantity, value, and where it comes from."""
    share = plan.problems / plan.ranks  # problems of a rank
    drawing = share * plan.rollouts / plan.rate
    again = costs.read + costs.sum_up + costs.hold  # of a record on disk, for a report
    host = share * (costs.write + costs.choose + again)
    rows = [
        ("rollouts", plan.problems * plan.rollouts, "problems x rollouts"),
        ("record, KB", costs.line_bytes / 1e3, "measured"),
        ("record, bytes a rollout", costs.line_bytes / plan.rollouts, "measured / rollouts"),
        ("records, TB", plan.problems * costs.line_bytes / 1e12, "record x problems"),
        ("records of a file, GB", share * costs.line_bytes / 1e9, "records / ranks: one file a rank"),
        ("latents if kept in bfloat16, TB", 2e-12 * plan.problems * plan.rollouts * plan.latents * plan.width,
         "2 bytes x problems x rollouts x latents x width"),
        ("finished set of a rank, MB", plan.problems * ID_BYTES / 1e6, f"problems x {ID_BYTES} B: each knows the ids of all"),
        ("scores for the figures on rank 0, GB", plan.problems * plan.rollouts * SCORE_BYTES / 1e9,
         f"problems x rollouts x {SCORE_BYTES} B"),
        ("drawing, h", drawing / 3600, f"problems / ranks x rollouts / {plan.rate:g} a second (assumed)"),
        ("records of a rank: chosen, written, read, summed, held, h", host / 3600, "seconds x problems / ranks, one thread"),
        ("  of it chosen, s a record", costs.choose, "measured"),
        ("  of it written, s a record", costs.write, "measured"),
        ("  of it read back, s a record", costs.read, "measured"),
        ("  of it summed up, s a record", costs.sum_up, "measured"),
        ("  of it held for table, page and events, s a record", costs.hold, "measured"),
        ("share of the host in drawing, %", 100 * host / drawing, "quotient"),
        ("a resume reads its share, h", share * costs.read / 3600, "read (measured) x problems / ranks"),
        ("report from records, one process, h", plan.problems * again / 3600, "(read + summed up + held) x problems"),
        (f"report from records, {CORES} processes, h", plan.problems * again / CORES / 3600, "the same / processes"),
    ]  # fmt: skip
    return [{"quantity": name, "value": value, "from": origin} for name, value, origin in rows]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--problems", type=int, default=1_000_000, help="problems (default: %(default)s)")
    parser.add_argument("--rollouts", type=int, default=1024, help="rollouts of each (default: %(default)s)")
    parser.add_argument("--latents", type=int, default=6, help="thoughts of a rollout (default: %(default)s)")
    parser.add_argument("--width", type=int, default=768, help="size of a thought (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=64, help="processes, one device each (default: %(default)s)")
    parser.add_argument(
        "--rate", type=float, default=2000.0, help="rollouts a second of a device (default: %(default)s)"
    )
    parser.add_argument("--records", type=int, default=8, help="records to measure with (default: %(default)s)")
    options = parser.parse_args()
    plan = Plan(options.problems, options.rollouts, options.latents, options.width, options.ranks, options.rate)
    costs = measured(plan.rollouts, plan.latents, options.records)
    title = f"{plan.problems} problems x {plan.rollouts} rollouts on {plan.ranks} devices"
    show(title, table(plan, costs), options.out, costs=vars(costs))


if __name__ == "__main__":
    main()

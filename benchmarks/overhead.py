"""What an evaluation does beside its models: records, choices, lines on disk, what is shown, and the summing up at the end.

    python -m benchmarks.overhead                                        # the tiny COCONUT, N = 16, 64, 256, all aggregations
    python -m benchmarks.overhead --backbone FOLDER --reward-model FOLDER --num-rollouts 16 --problems 32
    python -m benchmarks.overhead --num-rollouts 16 --rollouts-per-part 16   # one problem at a time, in parts of one size

Processor seconds of one thread, milliseconds a problem. `between` stands between two batches of a device: records are made and
chosen from, written, and counted for what is shown. `end` is the summing up of all records, read back from disk, when every batch
is done. `share` is both of them in all of the evaluation's time, without start-up and the drawing of the report.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import arguments, show, validation_problems
from benchmarks.timing import machine
from latent_tts.aggregation import AGGREGATIONS
from latent_tts.evaluation import evaluator
from latent_tts.evaluation.prediction_files import RecordWriter, prediction_files, prediction_path
from latent_tts.evaluation.record_reading import read_records
from latent_tts.problems import Problem
from latent_tts.sampling import AdditiveGaussianNoise
from lightning_modules.parallel_tts_module import ParallelTTSModule


class Stopwatch:
    """Processor seconds by the name of what was done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def counting(self, name: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started

    def around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The work, counted."""

        def counted(*given: Any, **named: Any) -> Any:
            with self.counting(name):
                return work(*given, **named)

        return counted


def measured(module: ParallelTTSModule, problems: list[Problem], batch_size: int, folder: Path) -> dict[str, float]:
    """Processor seconds of the parts of an evaluation, as its callbacks do them."""
    watch, writer = Stopwatch(), RecordWriter(prediction_path(folder, 0))
    makers = {name: getattr(evaluator, name) for name in ("make_record", "choose")}
    for name, work in makers.items():
        setattr(evaluator, name, watch.around("records", work))
    try:
        for first in range(0, len(problems), batch_size):
            with watch.counting("predict"):
                records = module.predict_step(problems[first : first + batch_size])
            with watch.counting("written"):
                for record in records:
                    writer.append(record)
            with watch.counting("shown"):
                module.metrics.update(*records)
    finally:
        for name, work in makers.items():
            setattr(evaluator, name, work)
        writer.close()
    with watch.counting("end"):
        module.empty_metrics().count_all(read_records(prediction_files(folder))).compute()
    return watch.seconds


def row(num_rollouts: int, seconds: dict[str, float], num_problems: int) -> dict[str, Any]:
    between = seconds["records"] + seconds["written"] + seconds["shown"]
    whole = seconds["predict"] + seconds["written"] + seconds["shown"] + seconds["end"]
    parts = {"models": seconds["predict"] - seconds["records"]}
    parts |= {name: seconds[name] for name in ("records", "written", "shown")} | {
        "between": between,
        "end": seconds["end"],
    }
    milliseconds = {f"{name}, ms": 1e3 * part / num_problems for name, part in parts.items()}
    return {"N": num_rollouts, **milliseconds, "share, %": 100 * (between + seconds["end"]) / whole}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--backbone", default="checkpoints/tiny-coconut", help="folder (default: %(default)s)")
    parser.add_argument("--reward-model", default="checkpoints/tiny-latent-rm", help="folder (default: %(default)s)")
    parser.add_argument("--num-rollouts", type=int, nargs="+", default=[16, 64, 256], help="N (default: 16 64 256)")
    parser.add_argument("--problems", type=int, default=64, help="problems (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="problems in a batch (default: %(default)s)")
    parser.add_argument("--rollouts-per-part", type=int, help="size of parts (default: batches of any shape)")
    parser.add_argument("--sigma", type=float, default=2.0, help="noise on latents (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    problems = validation_problems(0, options.problems + options.batch_size)
    rows = []
    for num_rollouts in options.num_rollouts:
        module = ParallelTTSModule(
            options.backbone, AdditiveGaussianNoise(options.sigma), num_rollouts,
            reward_model=options.reward_model, aggregations=list(AGGREGATIONS), rollouts_per_part=options.rollouts_per_part,
        ).to(options.device)  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            # tables of subsets and binomials, and the kernels, are made once
            measured(module, problems[: options.batch_size], options.batch_size, Path(folder) / "warm")
            seconds = measured(module, problems[options.batch_size :], options.batch_size, Path(folder) / "run")
        rows.append(row(num_rollouts, seconds, options.problems))
    show(f"{options.backbone}, {options.problems} problems", rows, options.out, **machine(options.device))


if __name__ == "__main__":
    main()

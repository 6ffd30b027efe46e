"""Ours beside a straightforward implementation: the loop, the table and the options that every comparison has, once.

Implementations run in processes of their own and take turns, as does the measurement of the machine's matrix-product rate;
figures are medians over the rounds. Memory is the peak beyond what was there when an implementation was ready.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common import SIZES, arguments, show
from benchmarks.timing import CLOCKS, SQUARE, gemm_rate, machine, peak_bytes, start_counting, synchronize

Job = dict[str, Any]
"""The options, with one value for each of those that are varied, and which implementation is meant."""


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how its work is counted.

    Attributes:
        module: Where it is run as a program.
        unit: What is counted: ``rollout``.
        columns: Options that may be varied, and what the table calls them.
        make: The implementation of a job, ``ours`` or ``reference``, ready to be called.
        units: How many of the unit a call makes.
        useful_flops: Operations that a call needs.
        gemm_rows: Rows of the products in the blocks, the shape at which the rate is measured beside large squares.
        reference_rounds: Rounds in which the reference takes part; 0 leaves it out.
        reference_part: The share of a call that the reference does.
        warm_reference: Whether the reference is called once before it is timed, as ours is.
    """

    module: str
    unit: str
    columns: dict[str, str]
    make: Callable[[Job], Callable[[], Any]]
    units: Callable[[Job], int]
    useful_flops: Callable[[Job], int]
    gemm_rows: Callable[[Job], int]
    reference_rounds: Callable[[Job], int]
    reference_part: Callable[[Job], float] = lambda job: 1.0
    warm_reference: bool = True

    def work(self, job: Job) -> None:
        """A worker's side: one implementation at one setting, or the matrix products."""
        from latent_tts.acceleration.kernels.library import SWITCH

        if job["which"] == "reference":
            os.environ[SWITCH] = "off"
        if job["threads"]:
            torch.set_num_threads(job["threads"])
        if job["which"] == "GEMM":
            serve_gemm(job, self.gemm_rows(job))
        else:
            serve(self.make(job), job, warm_up=job["which"] == "ours" or self.warm_reference)

    def compare(self, job: Job) -> dict[str, Any]:
        """One row of the table."""
        jobs = {name: job | {"which": name} for name in ("ours", "GEMM")}
        if rounds := self.reference_rounds(job):
            jobs["reference"] = job | {"which": "reference", "repeats": min(rounds, job["repeats"])}
        measured = take_turns(self.module, jobs)
        ours = [turn["seconds"] for turn in measured["ours"]]
        rates = {name: [turn[name] for turn in measured["GEMM"]] for name in ("square", "feed-forward")}
        needed = self.useful_flops(job)
        row = {column: job[option] for option, column in self.columns.items()} | self._speed("ours", job, measured)
        for column, name in (("share of GEMM", "square"), ("at own shape", "feed-forward")):
            row[column] = statistics.median(needed / s / rate for s, rate in zip(ours, rates[name], strict=True))
        row |= self._speed("reference", job, measured) | {"times faster": None}
        if rounds:
            part, theirs = self.reference_part(job), [turn["seconds"] for turn in measured["reference"]]
            row["times faster"] = statistics.median(r / part / o for r, o in zip(theirs, ours, strict=False))
        return row | {f"{name} GFLOP/s": statistics.median(turns) / 1e9 for name, turns in rates.items()}

    def _speed(self, name: str, job: Job, measured: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        columns = [f"{name} {self.unit}s/s", f"{name} ms/{self.unit}", f"{name} MiB"]
        if name not in measured:
            return dict.fromkeys(columns)
        seconds = statistics.median(turn["seconds"] for turn in measured[name])
        seconds /= self.units(job) * (self.reference_part(job) if name == "reference" else 1)
        return dict(zip(columns, (1 / seconds, 1e3 * seconds, measured[name][-1]["memory"] / 2**20), strict=True))

    def measure(
        self, args: argparse.Namespace, values: dict[str, list[Any]], done: list[dict[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """A row for every combination of the values of the options; rows are added to those done, none is measured again."""
        done, rows = [] if done is None else done, []
        for some in itertools.product(*values.values()):
            setting = dict(zip(values, some, strict=True))
            known = [row for row in done if all(row[self.columns[name]] == value for name, value in setting.items())]
            if not known:
                done.append(self.compare(vars(args) | setting))
            rows.append(known[0] if known else done[-1])
        return rows

    def values(self, args: argparse.Namespace) -> dict[str, list[Any]]:
        """The values of the options that are varied."""
        return {name: getattr(args, name) for name in self.columns}

    def parse(self, parser: argparse.ArgumentParser) -> argparse.Namespace | None:
        """The options; None where this process is a worker, which has done its work."""
        args = parser.parse_args()
        if args.job:
            self.work(json.loads(args.job))
            return None
        if args.threads:
            torch.set_num_threads(args.threads)
        return args

    def show(self, title: str, args: argparse.Namespace, rows: list[dict[str, Any]], out: str | None) -> None:
        show(title, rows, out, clock=args.clock, repeats=args.repeats, **machine(args.device))

    def main(self, parser: argparse.ArgumentParser, title: str) -> None:
        """Parses, measures and prints; `title` has fields for options."""
        args = self.parse(parser)
        if args is not None:
            self.show(title.format(**vars(args)), args, self.measure(args, self.values(args)), args.out)


def comparison_arguments(doc: str | None, num_rollouts: int) -> argparse.ArgumentParser:
    """The options of every comparison."""
    parser = arguments(doc)
    add = parser.add_argument
    add("--size", choices=SIZES, nargs="+", default=["small"], help="model sizes (default: %(default)s, GPT-2 small)")
    add("--prompt-length", type=int, nargs="+", default=[80], help="tokens of a prompt (default: %(default)s)")
    add("--num-rollouts", type=int, nargs="+", default=[num_rollouts], help="values of N (default: %(default)s)")
    add("--num-latents", type=int, default=6, help="latent thoughts (default: %(default)s)")
    add("--dtype", choices=["float32", "bfloat16"], nargs="+", default=["float32"], help="types (default: %(default)s)")
    add("--threads", type=int, default=0, help="CPU threads (default: torch's own)")
    add("--clock", choices=CLOCKS, default="wall", help="what a second is (default: %(default)s)")
    add("--repeats", type=int, default=3, help="timed rounds (default: %(default)s)")
    add("--job", help=argparse.SUPPRESS)
    return parser


# Processes that take turns ---------------------------------------------------------------------------------------------


class Worker:
    """One implementation in a process of its own, so that peaks of memory don't mix, which does one call when it is told.

    It is ready, warmed up, when the constructor returns: a call never runs beside another worker's warm-up.

    Args:
        module: Its ``main`` takes ``--job JSON`` and hands the work to ``serve``.
        job: What to do.
    """

    def __init__(self, module: str, job: dict[str, Any]) -> None:
        command = [sys.executable, "-m", module, "--job", json.dumps(job)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def call(self) -> dict[str, Any]:
        """What the worker measured of one call."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self.process.args))} failed")  # type: ignore[arg-type]
        return json.loads(line)

    def close(self) -> None:
        self.process.communicate()


def take_turns(module: str, jobs: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Measurements of every job, by name, one of each in every round, so that other load on the machine meets all alike.

    A job takes part in its first ``repeats`` rounds.
    """
    workers = {name: Worker(module, job) for name, job in jobs.items()}
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for turn in range(max(job["repeats"] for job in jobs.values())):
        for name, worker in workers.items():
            if turn < jobs[name]["repeats"]:
                measured[name].append(worker.call())
    for worker in workers.values():
        worker.close()
    return measured


def serve(run: Callable[[], Any], job: Job, warm_up: bool = True) -> None:
    """A worker's side: warms up, then times a call per line of its input; memory is counted from here on."""
    device, clock = job["device"], CLOCKS[job["clock"]]
    before = start_counting(device)
    if warm_up:
        run()
    print("{}", flush=True)  # ready
    for _ in sys.stdin:
        synchronize(device)
        start = clock()
        run()
        synchronize(device)
        print(json.dumps({"seconds": clock() - start, "memory": peak_bytes(device) - before}), flush=True)


def serve_gemm(job: Job, rows: int) -> None:
    """A worker's side: the rate of matrix products, of large squares and of the blocks' own feed-forward shape."""
    _, width, _, _ = SIZES[job["size"]]
    shapes = {"square": SQUARE, "feed-forward": (rows, width, 4 * width)}
    print("{}", flush=True)  # ready
    for _ in sys.stdin:
        rates = {
            name: gemm_rate(getattr(torch, job["dtype"]), job["clock"], job["device"], shape)
            for name, shape in shapes.items()
        }
        print(json.dumps(rates), flush=True)

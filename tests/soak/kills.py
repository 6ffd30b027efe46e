"""Signals at random moments; the same command; the files of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.processes import Command
from tests.soak.workload import Workload, annotation_for_training, workloads

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1")
TARGETS = ("starter", "all", "other rank")
_RUN_WITHIN = 1200.0  # seconds of a run that nobody disturbs, on a busy machine
_BEGUN_SHARE = 0.8  # of the signals come after the run has begun to write, the others anywhere from its start


@dataclass
class Tally:
    """What has happened."""

    kills: int = 0
    compared: int = 0
    hangs: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)
    by_kind: Counter[str] = field(default_factory=Counter)
    slowest_end: float = 0.0

    @property
    def is_clean(self) -> bool:
        return not (self.hangs or self.left_behind or self.lost or self.defects)

    def summary(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.by_kind.items()))
        faults = [*self.hangs, *self.left_behind, *self.lost, *self.defects]
        return "\n".join(
            [
                f"{self.kills} kills ({kinds})",
                f"{len(self.hangs)} hung, {len(self.left_behind)} left processes behind, slowest end {self.slowest_end:.1f} s",
                f"{self.compared} folders compared, {len(self.lost)} differ; {len(self.defects)} other defects",
                *(f"  {fault}" for fault in faults),
            ]
        )


class Soak:
    """Runs rounds.

    Args:
        folder: Where everything is made.
        seed: Of workloads, signals and moments.
        names: Of the workloads to choose from.
        processes: Numbers of processes to choose from.
        signals: To choose from.
    """

    def __init__(
        self,
        folder: Path,
        seed: int = 0,
        names: Sequence[str] = ("evaluation", "annotation", "reward", "backbone"),
        processes: Sequence[int] = (1, 2),
        signals: Sequence[str] = SIGNALS,
    ) -> None:
        self.folder, self.rng, self.signals, self.tally = folder, random.Random(seed), list(signals), Tally()
        self.annotations = folder / "annotations"
        found = workloads(self.annotations)
        self.plan = [(found[name], number) for name in names for number in processes]
        self._whole: dict[tuple[str, int], tuple[Any, float, float]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, kills: int, minutes: float) -> Tally:
        """Rounds until so many kills or minutes."""
        deadline, number = time.monotonic() + 60.0 * minutes, 0
        while self.tally.kills < kills and time.monotonic() < deadline:
            workload, processes = self.plan[number % len(self.plan)]
            self.round(workload, processes, number, min(self.rng.choice((1, 2, 3)), kills - self.tally.kills))
            number += 1
        return self.tally

    def round(self, workload: Workload, processes: int, number: int, kills: int) -> None:
        """One folder: so many kills, then to its end."""
        content, before, during = self.undisturbed(workload, processes)
        name = f"{workload.name}-{processes}-round{number}"
        output, log, now = self.folder / name, self.folder / f"{name}.log", processes
        for kill in range(kills):
            code = self._kill(workload.command(output, now), output, log, f"{name} kill {kill}", before, during)
            if code == 0:  # it was through before the signal came
                break
            now = self.rng.choice((1, 2, 3)) if workload.any_processes else processes
        faults, code = len(self.tally.lost), self.finish(workload.command(output, now), log)
        if code != 0:
            self.tally.lost.append(f"{name}: the same command ended with {code}, see {log}")
        elif (found := workload.content(output)) != content:
            self.tally.lost.append(f"{name}: {_difference(content, found)}")
        self.tally.compared += 1
        if len(self.tally.lost) == faults:
            shutil.rmtree(output)

    def undisturbed(self, workload: Workload, processes: int) -> tuple[Any, float, float]:
        """Content, seconds until it writes, and seconds from there to the end."""
        key = (workload.name, 1 if workload.any_processes else processes)
        if key not in self._whole:
            if workload.name == "reward" and not (self.annotations / "index.json").exists():
                assert self.finish(annotation_for_training(self.annotations), self.folder / "annotations.log") == 0
            output, log = self.folder / f"{key[0]}-{key[1]}-whole", self.folder / f"{key[0]}-{key[1]}-whole.log"
            command = Command(workload.command(output, key[1]), log)
            command.wait_until(output.exists, _RUN_WITHIN)
            begun = time.monotonic()
            assert command.end(_RUN_WITHIN) == (0, []), f"see {log}"
            self._whole[key] = (workload.content(output), begun - command.started, time.monotonic() - begun)
        return self._whole[key]

    def _kill(self, words: list[str], output: Path, log: Path, name: str, before: float, during: float) -> int | None:
        """Starts a command and sends it a signal at a random moment; its exit code."""
        was_there = output.exists()
        command = Command(words, log)
        if self.rng.random() < _BEGUN_SHARE:
            if was_there:
                time.sleep(before)
            else:
                command.wait_until(output.exists, _RUN_WITHIN)
            moment = self.rng.uniform(0, during)
        else:
            moment = self.rng.uniform(0, before)
        command.wait_until(lambda: False, moment)
        signame, target = self.rng.choice(self.signals), self.rng.choice(TARGETS)
        printed, is_hit = len(command.printed()), command.is_running
        target = self._send(command, signal.Signals[signame], target)
        sent = time.monotonic()
        code, left = command.end()
        seconds = time.monotonic() - sent
        if is_hit:
            self._note(name, signame, target, code, left, seconds, command.printed()[printed:])
        return code

    def _send(self, command: Command, signum: signal.Signals, target: str) -> str:
        """Sends it; what it was sent to, as there may be one process only."""
        ranks = command.ranks()
        if target == "other rank" and not ranks:
            target = "starter"
        pids = {"all": command.members(), "other rank": self.rng.sample(ranks, 1) if ranks else []}.get(
            target, [command.process.pid]
        )
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
        return target

    def _note(
        self, name: str, signame: str, target: str, code: int | None, left: list[int], seconds: float, printed: str
    ) -> None:
        tally, what = self.tally, f"{name}: {signame} to {target}, exit code {code}"
        tally.kills += 1
        tally.by_kind[signame] += 1
        tally.slowest_end = max(tally.slowest_end, seconds)
        if code is None:
            tally.hangs.append(what)
        elif left:
            tally.left_behind.append(f"{what}, {len(left)} left")
        elif "Traceback" in printed and not _before_it_listens(code):
            tally.defects.append(f"{what}, with a traceback")
        print(f"{tally.kills:3d} {what} after {seconds:.1f} s", flush=True)

    def finish(self, words: list[str], log: Path) -> int | None:
        return Command(words, log).end(_RUN_WITHIN)[0]


def _before_it_listens(code: int) -> bool:
    """Python's own end by a signal, while it still imports."""
    return code < 0


def _difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """The first that differs."""
    for key in [*expected, *(key for key in found if key not in expected)]:
        if expected.get(key) != found.get(key):
            return f"{key} was {str(expected.get(key))[:2000]} and is {str(found.get(key))[:2000]}"
    return "nothing"

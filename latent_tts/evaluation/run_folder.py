"""What an evaluation leaves on disk, the settings it was made with, and what a run with the same settings goes on from.

OUTPUT/predictions/rank-00000.jsonl    the records; see `latent_tts.evaluation.prediction_files`
OUTPUT/run.json                        how they were made, and all they depend on (`settings`): another run must agree to go on
OUTPUT/config.yaml                     the whole configuration, `evaluate.py --config OUTPUT/config.yaml` runs it again
OUTPUT/metrics.json, report.md, tensorboard/    functions of the records, rewritten when a run ends
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latent_tts.answers import AnswerRule
from latent_tts.errors import UserError
from latent_tts.evaluation.prediction_files import (
    cut_torn_line,
    prediction_files,
    prediction_path,
    read_records,
    rewrite_records,
)
from latent_tts.evaluation.records import Record
from latent_tts.files.whole import write_whole

Settings = dict[str, Any]
"""Flat: `model.num_rollouts` -> 16. Two runs may share a folder only when all of it agrees."""

_NO_GROWTH = ("model.latent_control", "model.adaptive")
"""What a record holds under these depends on all of its rollouts: runs with them take more problems, and nothing else."""
RUN_FILE, CONFIG_FILE, METRICS_FILE = "run.json", "config.yaml", "metrics.json"


# Settings -----------------------------------------------------------------------------------------------------------


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Settings:
    """Nested settings as one level of dotted names; lists stay values."""
    flat: Settings = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(stored: Settings, current: Settings) -> list[str]:
    """One phrase for each setting in which two runs differ, such as `model.seed was 0 and is 1 now`.

    What may grow (`MORE_PROBLEMS`, `MORE_OF_EACH`) and does is no difference: the run goes on with what is missing. Nor is what
    only one of them names and has switched off (see `off`): the other one is older than the option.
    """
    keys = [*stored, *(key for key in current if key not in stored)]
    return [
        f"{key} was {_shown(stored.get(key))} and is {_shown(current.get(key))} now"
        for key in keys
        if stored.get(key) != current.get(key)
        and not _lacking(key, stored, current)
        and not _may_grow(key, stored, current)
    ]


def off(value: Any) -> bool:
    """Whether a setting is as if there were none: False or None, which is why a new option is one of these by default."""
    return value is False or value is None


def _lacking(key: str, stored: Settings, current: Settings) -> bool:
    """Whether one run does not know a setting that the other one has switched off."""
    return not (key in stored and key in current) and off(stored.get(key)) and off(current.get(key))


def _at_least(other: int | None, limit: int | None) -> bool:
    """For limits: None is no limit."""
    return limit is None or (other is not None and limit >= other)


def _added(before: Any, now: Any) -> bool:
    return before is None and now is not None


def _includes(before: Any, now: Any) -> bool:
    """Whether a list holds all that another did."""
    return isinstance(before, list) and isinstance(now, list) and all(one in now for one in before)


MORE_PROBLEMS = {"data.limit": _at_least, "data.size": _at_least}
"""Settings by which a run takes further problems: name -> whether a value (first) may become another (second)."""

MORE_OF_EACH: dict[str, Callable[[Any, Any], bool]] = {
    "model.num_rollouts": lambda before, now: now > before,
    "model.aggregations": _includes,
    "model.search": _includes,
    "model.reward_model.fingerprint": _added,
    "model.written.fingerprint": _added,
    "model.written.max_written_tokens": _added,
    "model.keep_latents": _added,
}
"""Settings by which the records that are there get more in them; all others stay, or are refused by name."""


def _may_grow(key: str, stored: Settings, current: Settings) -> bool:
    before, now = stored.get(key), current.get(key)
    if key in MORE_PROBLEMS:
        return MORE_PROBLEMS[key](before, now)
    if key in MORE_OF_EACH and "model.num_rollouts" in stored:
        return not any(name.startswith(_NO_GROWTH) for name in (*stored, *current)) and MORE_OF_EACH[key](before, now)
    return False


def grows_records(stored: Settings, current: Settings) -> bool:
    """Whether records that are there have to get more in them, settings being no different otherwise."""
    return any(stored.get(key) != current.get(key) for key in MORE_OF_EACH)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def check_folder(folder: Path, settings: Settings, output: Path | None = None) -> None:
    """Makes sure, before anything is written, that a run with these settings can write (or go on) in a folder.

    Args:
        folder: Where its records are.
        settings: Of the run.
        output: The folder as its user knows it.

    Raises:
        UserError: The folder cannot be written to, or holds results of other settings (named with both values).
    """
    output = output or folder
    _check_writable(folder)
    run = read_run(folder)
    if run is None:
        if any(prediction_files(folder)):
            raise UserError(
                f"{output} holds predictions without {RUN_FILE}, so they cannot be gone on with: use another --output."
            )
        return
    changed = differences(run["settings"], json.loads(json.dumps(settings)))
    if changed:
        raise UserError(
            f"{output} holds results of another configuration: {'; '.join(changed)}. "
            f"Use another --output, or the same settings to go on{_or_read(output, run['settings'], settings)}."
        )


def _or_read(output: Path, stored: Settings, current: Settings) -> str:
    """How to have fewer rollouts than were drawn."""
    drawn, asked = stored.get("model.num_rollouts"), current.get("model.num_rollouts")
    if drawn is None or asked is None or asked >= drawn:
        return ""
    return f"; what {asked} of its rollouts reach is read by `python evaluate.py report {output} --ks {asked}`"


def _check_writable(output: Path) -> None:
    folder = output.absolute()
    while not folder.exists():
        if folder == folder.parent:
            break
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        what = "is not writable" if folder.is_dir() else "is a file"
        raise UserError(f"Cannot write the results to {output}: {folder} {what}; name another folder with --output.")


def read_run(output: Path) -> dict[str, Any] | None:
    """The content of run.json; None where there is none.

    Raises:
        UserError: It is damaged.
    """
    path = output / RUN_FILE
    if not path.exists():
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        run = None
    if not isinstance(run, dict) or not isinstance(run.get("settings"), dict):
        raise UserError(f"{path} is damaged: start afresh with another --output.")
    return run


def write_run(output: Path, run: Mapping[str, Any], rank: int = 0) -> None:
    """Writes run.json, whole; it holds at least `settings`."""
    write_whole(output / RUN_FILE, json.dumps(run, indent=2, ensure_ascii=False) + "\n", rank)


# Resuming -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Golds:
    """What the data say now: the gold answer of every problem, by its id, and when an answer equals it."""

    by_problem: Mapping[str, float]
    rule: AnswerRule = "tolerance"
    partners: Mapping[str, str] = field(default_factory=dict)
    """Of a control that shuffles latents: by problem id the problem whose thoughts are fed."""

    def up_to_date(self, record: Record) -> Record | None:
        """The record, judged anew where its gold answer was corrected; None where its problem, or the one it is paired with, is
        gone."""
        gold = self.by_problem.get(record.problem_id)
        if gold is None or self.partners.get(record.problem_id) != record.latents_of:
            return None
        return record if gold == record.gold else record.judged(gold, self.rule)


class FinishedProblems:
    """The problems whose records are on disk: what a resumed run leaves out.

    Records of a problem whose gold answer was corrected are judged anew, and those of a problem that is gone are left out, as are
    those that a control has paired with another problem than the data do now, which are drawn again.

    Args:
        output: The run's folder.
        golds: What the data say now; None takes every record as it is.
        rank: This process' rank; with world_size, decides which files' records it counts in its metrics.
        world_size: Number of processes.

    Attributes:
        num_judged_anew: Records on disk whose gold answer was another.
        num_gone: Records on disk of problems that are gone.
        num_unpaired: Records on disk of problems that are paired with another one.
    """

    def __init__(self, output: Path, golds: Golds | None = None, rank: int = 0, world_size: int = 1) -> None:
        self.output, self.golds = output, golds
        files = prediction_files(output)
        mine = self._files_to_mend(files, rank, world_size)
        for path in mine:
            cut_torn_line(path)
        self.files_to_count = files[rank::world_size]  # every record is counted by exactly one rank
        self.ids: set[str] = set()
        self.num_rollouts: dict[str, int] = {}
        self.num_judged_anew = self.num_gone = self.num_unpaired = 0
        self._outdated = [path for path in files if self._read(path) and path in mine]

    def __contains__(self, problem_id: str) -> bool:
        return problem_id in self.ids

    def __len__(self) -> int:
        return len(self.ids)

    def records_to_count(self) -> Iterator[Record]:
        """This rank's share of the records on disk, each record on one rank only."""
        return self._current(self.files_to_count)

    def bring_up_to_date(self) -> None:
        """Rewrites this rank's files whose records are out of date; to be called when every rank has read what is there."""
        for path in self._outdated:
            rewrite_records(path, list(self._current([path])))

    def news(self) -> str:
        """One line on what the data have changed since the records were written; empty where nothing has."""
        changes = {
            "judged anew by a corrected gold answer": self.num_judged_anew,
            "left out, as the problem is gone": self.num_gone,
            "drawn again, as another problem's latents belong to it": self.num_unpaired,
        }
        phrases = [
            f"{count} {'record' if count == 1 else 'records'} {what}" for what, count in changes.items() if count
        ]
        return f"The data have changed since {self.output} was written: {'; '.join(phrases)}." if phrases else ""

    def _read(self, path: Path) -> bool:
        """Takes note of a file's problems; whether any of its records is out of date."""
        changed = False
        for record in read_records([path]):
            if record.problem_id in self.ids:
                raise UserError(
                    f"{self.output} holds problem {record.problem_id} twice: start afresh with another --output."
                )
            current = record if self.golds is None else self.golds.up_to_date(record)
            if current is None and self.golds is not None:
                gone = record.problem_id not in self.golds.by_problem
                self.num_gone, self.num_unpaired = self.num_gone + gone, self.num_unpaired + (not gone)
            elif current is not None:
                self.num_judged_anew += current is not record
                self.ids.add(record.problem_id)
                self.num_rollouts[record.problem_id] = len(record.rollouts)
            changed |= current is not record
        return changed

    def _current(self, files: Iterable[Path]) -> Iterator[Record]:
        for record in read_records(files):
            current = record if self.golds is None else self.golds.up_to_date(record)
            if current is not None:
                yield current

    def _files_to_mend(self, files: Sequence[Path], rank: int, world_size: int) -> list[Path]:
        """This rank's own file; rank 0 also mends those of ranks that no longer exist."""
        alive = [prediction_path(self.output, r) for r in range(world_size)]
        orphans = [path for path in files if path not in alive] if rank == 0 else []
        return [alive[rank], *orphans]

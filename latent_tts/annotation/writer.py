"""Annotated rollouts on disk: a folder of Parquet shards that every rank appends to.

    FOLDER/settings.json                   how the annotations were made (AnnotationSettings); never changes
    FOLDER/shard-00003-000017.parquet      shard 17 of rank 3, put in place whole; one row a problem (records.py)
    FOLDER/.shard-00003-000017.parquet.3   a shard being written; a kill may leave one, nobody reads it
    FOLDER/.lock-00003                     held while rank 3 of a run writes
    FOLDER/index.json                      written when a run ends: every shard with its number of rows

Promises: a shard is visible only when complete (written aside, synced, renamed); shards are never rewritten; a problem that is
in the folder is refused, so a run that was killed at any moment is continued by running it again, with any number of ranks;
annotations made with other settings are refused, when writing and when reading; a second run in the same folder is refused
while the first goes on.

    writer = AnnotationWriter(folder, settings, rank=trainer.global_rank)
    todo = [problem for problem in batch if problem.problem_id not in writer]
    writer.add(AnnotatedProblem(...))          # kept in memory until a shard is full; the unwritten rest is redone after a kill
    writer.close()                             # writes the rest; then, after a barrier, on rank 0: write_index(folder)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq

from latent_tts.annotation.records import AnnotatedProblem, check_problem, to_table
from latent_tts.annotation.settings import SETTINGS_FILE, AnnotationSettings, read_settings
from latent_tts.annotation.shards import INDEX_FILE, read_columns, shard_paths
from latent_tts.errors import UserError
from latent_tts.files.locks import lock
from latent_tts.files.whole import put_in_place, write_whole
from latent_tts.problems import Problem

ROWS_PER_GROUP = 4  # a random read decodes one row group: few rows keep it cheap, more would compress no better


class AnnotationWriter:
    """Appends problems to a folder, one writer a rank; see the module docstring for its promises.

    Args:
        folder: Made if it is not there.
        settings: How the annotations are made.
        rank: Number of this writer among those of the run.
        shard_size: Problems a shard; at most this many (less one) are redone after a kill.

    Raises:
        UserError: The folder holds annotations of other settings or a damaged shard, another run is writing to it, or it
            cannot be written to.
    """

    def __init__(self, folder: str | Path, settings: AnnotationSettings, rank: int = 0, shard_size: int = 64) -> None:
        if shard_size < 1:
            raise UserError(f"shard_size is {shard_size}; a shard holds at least 1 problem")
        self.folder, self.settings, self.rank, self.shard_size = Path(folder), settings, rank, shard_size
        self._pending: list[AnnotatedProblem] = []
        self._lock: IO[str] | None = None
        if (self.folder / SETTINGS_FILE).exists():
            self.settings = self._same_settings()
        self._write(self._claim_folder)
        try:
            self.golds = self._read_golds()
        except BaseException:
            self._unlock()
            raise
        own = [
            int(path.stem.split("-")[2]) for path in shard_paths(self.folder) if int(path.stem.split("-")[1]) == rank
        ]
        self._next_shard = max(own, default=-1) + 1

    def __contains__(self, problem_id: str) -> bool:
        return problem_id in self.golds

    def __len__(self) -> int:
        """Problems that are in the folder, or on their way there."""
        return len(self.golds)

    def require_same_data(self, problems: Iterable[Problem]) -> None:
        """Refuses data that is no longer what the stored problems were made from; reads the data only where there are some.

        Raises:
            UserError: Names the first stored problem whose gold answer was corrected, or that the data has no longer.
        """
        left = dict(self.golds)
        for problem in problems if left else ():
            stored = left.pop(problem.problem_id, problem.gold)
            if stored != problem.gold:
                raise UserError(
                    f"{self.folder} holds problem {problem.problem_id} judged by the gold answer {stored:g}, and the data says "
                    f"{problem.gold:g} now: annotate into another folder."
                )
        if left:
            raise UserError(
                f"{self.folder} holds {len(left)} problem(s) that the data has no longer, such as {next(iter(left))}: give the "
                "data as it was (with more problems it may be), or annotate into another folder."
            )

    def add(self, problem: AnnotatedProblem) -> bool:
        """Takes one problem; False, and nothing is written, where the folder has it already."""
        if problem.problem_id in self.golds:
            return False
        check_problem(problem, self.settings)
        self.golds[problem.problem_id] = problem.gold
        self._pending.append(problem)
        if len(self._pending) >= self.shard_size:
            self.flush()
        return True

    def flush(self) -> None:
        """Writes the pending problems as one shard.

        Raises:
            UserError: The disk is full, or the folder cannot be written to any more.
        """
        if not self._pending:
            return
        problems, self._pending = self._pending, []  # what could not be written is not tried again when the run ends
        self._write(lambda: self._write_shard(problems))
        self._next_shard += 1

    def close(self) -> None:
        """Writes the rest, and lets others write to the folder."""
        try:
            self.flush()
        finally:
            self._unlock()

    def __enter__(self) -> AnnotationWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_shard(self, problems: list[AnnotatedProblem]) -> None:
        name = f"{self.rank:05d}-{self._next_shard:06d}"
        with put_in_place(self.folder / f"shard-{name}.parquet", self.rank) as partial:
            pq.write_table(
                to_table(problems, self.settings),
                partial,
                row_group_size=ROWS_PER_GROUP,
                compression="zstd",
                use_dictionary=False,
                write_page_checksum=True,
            )

    def _write(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            raise UserError(
                f"The annotations in {self.folder} cannot be written ({error.strerror or error}): mend that and give the same "
                "command, which goes on from what is there."
            ) from error

    def _same_settings(self) -> AnnotationSettings:
        """Those of the folder, as they stand there: every shard has their digest."""
        found = read_settings(self.folder)
        changed = found.differences(self.settings)
        if changed:
            stored, asked = (", ".join(f"{name}={values[i]}" for name, *values in changed) for i in (0, 1))
            raise UserError(
                f"the annotations in {self.folder} were made with {stored}, this run asks for {asked}; use the same settings or "
                "another output folder"
            )
        return found

    def _claim_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        for leftover in self.folder.glob(f".shard-{self.rank:05d}-*"):  # this rank's half-written files of a killed run
            leftover.unlink()
        if not (self.folder / SETTINGS_FILE).exists():  # ranks race here with the same content
            text = json.dumps(self.settings.to_json(), indent=2, sort_keys=True) + "\n"
            write_whole(self.folder / SETTINGS_FILE, text, self.rank)

    def _take_lock(self) -> None:
        self._lock = (self.folder / f".lock-{self.rank:05d}").open("a")
        if not lock(self._lock):
            self._unlock()
            raise UserError(
                f"Another run is writing annotations to {self.folder}: wait for it, or use another output folder."
            )

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _read_golds(self) -> dict[str, float]:
        golds: dict[str, float] = {}
        for path in shard_paths(self.folder):
            columns = read_columns(path, ["problem_id", "gold"], self.settings)
            golds |= zip(columns["problem_id"].to_pylist(), columns["gold"].to_pylist(), strict=True)
        return golds


def write_index(folder: str | Path) -> dict[str, Any]:
    """Writes index.json for a finished run (one process, after every rank has closed its writer) and clears away leftovers."""
    folder = Path(folder)
    settings = read_settings(folder)
    rows = {path.name: len(read_columns(path, ["problem_id"], settings)) for path in shard_paths(folder)}
    for leftover in [*folder.glob(".shard-*"), *folder.glob(f".{SETTINGS_FILE}.*")]:
        leftover.unlink()
    index = {"settings": settings.digest(), "num_problems": sum(rows.values()), "shards": rows}
    write_whole(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
    return index

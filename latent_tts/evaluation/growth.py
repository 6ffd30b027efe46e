"""How a run in a folder becomes a larger one: more rollouts, scores, searches, aggregations, latents.

What may grow is a table in `latent_tts.evaluation.settings`. While a run grows, its records lie as they were: the larger
ones are written to OUTPUT/growing-N/, with a run.json of their own, and take their place when all are there. A run that fails
or is killed meanwhile leaves the smaller one whole, and the same command goes on.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from latent_tts.evaluation.finished_problems import Golds
from latent_tts.evaluation.prediction_files import PREDICTIONS, prediction_files
from latent_tts.evaluation.ranks import Exchange, all_of, done_by_all
from latent_tts.evaluation.record_reading import Place as RecordPlace
from latent_tts.evaluation.record_reading import RecordFiles, record_at
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.run_folder import check_folder, read_run
from latent_tts.evaluation.settings import Settings, grows_records

_GROWING = "growing-"


@dataclass(frozen=True)
class Place:
    """Where a run writes its records, and which ones it starts from.

    Attributes:
        output: The run's folder.
        folder: Where records are written: the run's folder, or growing-N in it.
        sources: Folders with smaller records, which may be few or of several sizes; the later go first.
    """

    output: Path
    folder: Path
    sources: tuple[Path, ...] = ()

    @property
    def grows(self) -> bool:
        """Whether records that are there become larger ones."""
        return self.folder != self.output

    def settle(self) -> None:
        """Puts the larger records in the place of the smaller ones, when all are there."""
        if not self.grows:
            return
        smaller, larger = self.output / PREDICTIONS, self.folder / PREDICTIONS
        if larger.is_dir():
            if smaller.is_dir():
                replaced = self.folder / "replaced"
                shutil.rmtree(replaced, ignore_errors=True)  # of a run that was killed when it had settled
                os.replace(smaller, replaced)
            os.replace(larger, smaller)

    def clear(self) -> None:
        """Removes what the growing has left, when everything is in its place."""
        for folder in _growing(self.output) if self.grows else ():
            shutil.rmtree(folder)


def find_place(output: Path, settings: Settings) -> Place:
    """Where a run with these settings goes on in a folder.

    Raises:
        UserError: The folder cannot be written to, or what it holds does not grow into this.
    """
    check_folder(output, settings)
    growing = _growing(output)
    for folder in growing:
        check_folder(folder, settings, output)
    current = json.loads(json.dumps(settings))
    own = next((one for one in growing if _settings(one) == current), None)
    held = _settings(output)
    if own is None and not growing and not (held and grows_records(held, current)):
        return Place(output, output)
    number = 1 + max((int(one.name.removeprefix(_GROWING)) for one in growing), default=0)
    folder = own or output / f"{_GROWING}{number}"
    return Place(output, folder, (output, *(one for one in growing if one != folder)))


def _growing(output: Path) -> list[Path]:
    found = [path for path in output.glob(f"{_GROWING}*") if path.name.removeprefix(_GROWING).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_GROWING)))


def _settings(folder: Path) -> Settings | None:
    run = read_run(folder)
    return None if run is None else run["settings"]


class EarlierRecords:
    """The records that a larger run starts from, read when they are asked for: memory holds their places alone.

    Every rank looks for its share of them, and all know what each has found: to make one is a collective.

    Args:
        place: Where they are.
        golds: What the data say now.
        rank: This process' rank.
        world_size: Number of processes.
        exchange: How the ranks hear of each other.
    """

    def __init__(
        self, place: Place, golds: Golds | None, rank: int = 0, world_size: int = 1, exchange: Exchange = all_of
    ) -> None:
        self.golds = golds
        paths = [path for folder in place.sources for path in prediction_files(folder)]
        files: RecordFiles = exchange(RecordFiles.of(paths))[0]  # nobody writes them meanwhile

        def look() -> list[tuple[str, RecordPlace, int]]:
            mine = files.read_share(rank, world_size, "run the same command again")
            return [(record.problem_id, where, len(record.rollouts)) for record, where in mine]

        found = [one for share in done_by_all(look, exchange) for one in share]  # in the order of the files
        self._where = {problem_id: where for problem_id, where, _ in found}
        self.num_rollouts = {problem_id: number for problem_id, _, number in found}

    def __call__(self, problem_id: str) -> Record | None:
        """The record of a problem, judged by today's gold answer; None where there is none."""
        where = self._where.get(problem_id)
        if where is None:
            return None
        record = record_at(where)
        return record if self.golds is None else self.golds.up_to_date(record)

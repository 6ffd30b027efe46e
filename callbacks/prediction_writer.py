"""Writes the records of a run as they come, and lets a run that was killed go on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.protocols import commit_of_problems, evaluation_module, problem_source
from latent_tts import __version__
from latent_tts.errors import UserError
from latent_tts.evaluation.finished_problems import FinishedProblems, Golds
from latent_tts.evaluation.growth import EarlierRecords, Place, find_place
from latent_tts.evaluation.latent_files import KeptLatents, LatentFiles
from latent_tts.evaluation.prediction_files import (
    PREDICTIONS,
    RecordWriter,
    files_of_rank,
    prediction_files,
    prediction_path,
)
from latent_tts.evaluation.provenance import now, provenance, seconds_worked
from latent_tts.evaluation.ranks import all_of, done_by_all
from latent_tts.evaluation.record_reading import RecordFiles, agreed
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.run_folder import CONFIG_FILE, read_run, write_run
from latent_tts.evaluation.settings import Settings
from latent_tts.files.whole import write_whole
from lightning_modules.parallel_tts_module import ParallelTTSModule


class PredictionWriter(Callback):
    """Appends the records of `ParallelTTSModule.predict_step` to OUTPUT/predictions/rank-*.jsonl, each problem once.

    Records on disk are counted in the module's metrics when the run starts, by each rank its share, judged by the gold answers
    that the data have now; those of problems that the data have no more are left out. The data module leaves out the batches
    whose problems are all there. A batch with a missing problem runs whole, so that it is computed as it would have been, and
    only the missing ones are written. Nothing is written before the first record is ready.

    Args:
        output: The run's folder.
        settings: What the records depend on beyond what the module knows, such as the data's options.
        config: Text of OUTPUT/config.yaml; none is written where it is empty.

    Attributes:
        files: When the run ends, all that its records are in, at the sizes that those know who wrote them.
        num_problems: When the run ends, how many there must be, as all ranks have counted them.
    """

    def __init__(self, output: str | Path, settings: Settings | None = None, config: str = "") -> None:
        self.output = Path(output)
        self.settings: Settings = dict(settings or {})
        self.config = config
        self.finished: FinishedProblems | None = None
        self.place = Place(self.output, self.output)
        self._latents: LatentFiles | None = None
        self._provenance: dict[str, Any] = {}
        self._earlier: dict[str, Any] = {}
        self._writer: RecordWriter | None = None
        self._num_written = 0
        self.files, self.num_problems = RecordFiles(()), 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the folder and counts what is there; a UserError leaves everything as it was."""
        module, data = evaluation_module(pl_module), problem_source(trainer)
        self.settings |= module.settings() | {"trainer.precision": trainer.precision}
        self.place = find_place(self.output, self.settings)
        self._began, self._started, self._earlier = (
            time.monotonic(),
            now(),
            read_run(self.place.folder) or read_run(self.output) or {},
        )
        device, precision = trainer.strategy.root_device, str(trainer.precision)
        commit = commit_of_problems(trainer)
        evaluated = module.evaluated() | ({"data": commit} if commit else {})
        self._provenance = provenance(__version__, device, precision, trainer.world_size) | {"evaluated": evaluated}
        ranks = trainer.global_rank, trainer.world_size
        golds, self._num_written = None, 0
        # on a shared disk some ranks may not see the files yet
        if any(all_of(self.place.grows or any(prediction_files(self.output)))):
            by_problem = {problem.problem_id: problem.gold for problem in data.problems()}
            golds = Golds(by_problem, module.evaluator.answer_rule, module.partners())
        earlier = EarlierRecords(self.place, golds, *ranks) if self.place.grows else None
        module.earlier = earlier
        self.finished = FinishedProblems(self.place.folder, golds, *ranks, module.metrics.count_all)
        self.finished.bring_up_to_date()
        if module.evaluator.keep_latents:
            self._open_latents(trainer, module, {} if earlier is None else earlier.num_rollouts)
        if trainer.is_global_zero and self.finished.news():
            print(self.finished.news())
        data.leave_out(self.finished.__contains__)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        module = evaluation_module(pl_module)
        records: Sequence[Record] = outputs
        assert self.finished is not None
        new = [record for record in records if record.problem_id not in self.finished]
        thought = {record.problem_id: module.evaluator.thought.get(record.problem_id) for record in new}
        self._append(new, {one: kept for one, kept in thought.items() if kept is not None}, trainer.global_rank)
        module.metrics.update(*new)

    def _open_latents(self, trainer: Trainer, module: ParallelTTSModule, earlier: Mapping[str, int]) -> None:
        """What is kept already, after what a kill has left without its record is cut out."""
        assert self.finished is not None
        if trainer.is_global_zero:
            LatentFiles(self.output).cut_to({**earlier, **self.finished.num_rollouts})
        trainer.strategy.barrier("latents without a record are gone")
        self._latents = module.evaluator.kept = LatentFiles(self.output)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the run is finished, where it was not before; larger records take the place of the smaller ones."""
        written = self._finish_files(trainer.global_rank, trainer.world_size)
        if self.place.grows:
            if trainer.is_global_zero:
                self.place.settle()
                write_run(self.output, self._run(finished=now()))
                if self.config:
                    write_whole(self.output / CONFIG_FILE, self.config)
                self.place.clear()
        elif trainer.is_global_zero and (written or self._is_other_than_before()):
            write_run(self.output, self._run(finished=now()))

    def _finish_files(self, rank: int, world_size: int) -> int:
        """Closes what this rank writes, when it is on the disk, and hears from all what there is; the records that are new."""
        assert self.finished is not None
        done_by_all(self._sync)
        files = agreed(files_of_rank(self.place.folder, rank, world_size))
        self.files = files.moved(self.output / PREDICTIONS)
        written = sum(all_of(self._num_written))
        self.num_problems = len(self.finished) + written
        return written

    def _sync(self) -> None:
        try:
            self._close(sync=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _is_other_than_before(self) -> bool:
        """Whether run.json does not say that the run is finished, or that its problems were read at another commit."""
        before, here = self._earlier.get("evaluated", {}), self._provenance["evaluated"]
        return self._earlier.get("finished") is None or before.get("data") != here.get("data")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._writer is not None and trainer.is_global_zero:
            with suppress(OSError):  # a full disk is what may have ended the run
                write_run(self.place.folder, self._run(finished=None))
        self._close()

    def _close(self, sync: bool = False) -> None:
        if self._writer is not None:
            self._writer.close(sync)
            self._writer = None

    def _append(self, records: Sequence[Record], latents: Mapping[str, KeptLatents], rank: int) -> None:
        """Latents first: those without a record are cut out by the next run, a record without them would stay so."""
        try:
            if self._latents is not None:
                self._latents.add(rank, latents)
            for record in records:
                if self._writer is None:
                    self._write_configuration(rank)
                    self._writer = RecordWriter(prediction_path(self.place.folder, rank))
                self._writer.append(record)
                self._num_written += 1
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"Cannot write to {self.output}: {error.strerror or error}; make room or use another --output, and run the same "
            "command again to go on."
        )

    def _write_configuration(self, rank: int) -> None:
        """Every rank writes what a run needs to go on: whichever is first, no record is ever without its settings."""
        write_run(self.place.folder, self._run(finished=None), rank)
        if self.config:
            write_whole(self.place.folder / CONFIG_FILE, self.config, rank)

    def _run(self, finished: str | None) -> dict[str, Any]:
        """The content of run.json; `seconds` adds up over the processes that have worked in the folder."""
        dates = {
            "started": self._earlier.get("started", self._started),
            "finished": finished,
            "seconds": seconds_worked(self._earlier.get("seconds", 0.0), self._began),
        }
        settings: Settings = json.loads(json.dumps(self.settings))
        return self._provenance | dates | {"settings": settings}

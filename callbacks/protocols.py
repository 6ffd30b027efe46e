"""What callbacks ask of the module and of the data, beyond what Lightning's types say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast, runtime_checkable

from lightning.pytorch import LightningModule, Trainer

from latent_tts.errors import UserError
from latent_tts.problems import Problem
from lightning_modules.parallel_tts_module import ParallelTTSModule


class CountsProblems(Protocol):
    """The counter of a module's metrics."""

    @property
    def num_problems(self) -> int:
        """Problems of this process so far, those on disk included."""


@runtime_checkable
class ReportsProgress(Protocol):
    """A module that goes through problems and can say how it fares."""

    @property
    def metrics(self) -> CountsProblems:
        """Where problems are counted."""

    def progress_news(self) -> str:
        """How it fares so far, for the progress bar."""


class ProblemSource(Protocol):
    """A data module of problems."""

    num_problems: int | None
    """None where it is not known before the end."""

    def leave_out(self, is_done: Callable[[str], bool]) -> None:
        """Leaves out the batches whose problems are all done, by their ids."""

    def problems(self) -> Iterator[Problem]:
        """The problems one by one."""


def problem_source(trainer: Trainer) -> ProblemSource:
    """The trainer's data module."""
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "problems"):
        raise UserError("Problems come from a data module: give the trainer a RolloutDataModule.")
    return cast(ProblemSource, data)


def commit_of_problems(trainer: Trainer) -> dict[str, str]:
    """Under `commit` what the problems of a hub set were read at; empty for those of files and generators."""
    commit = getattr(getattr(trainer, "datamodule", None), "commit", None)
    return {} if commit is None else {"commit": commit}


def evaluation_module(module: LightningModule) -> ParallelTTSModule:
    """The module, where it evaluates."""
    if not isinstance(module, ParallelTTSModule):
        raise UserError(f"Records are made by a ParallelTTSModule, not by a {type(module).__name__}.")
    return module


def progress_of(module: LightningModule) -> ReportsProgress:
    """The module, where it can say how it fares."""
    if not isinstance(module, ReportsProgress):
        raise UserError(f"{type(module).__name__} counts no problems: it has no progress to show.")
    return module

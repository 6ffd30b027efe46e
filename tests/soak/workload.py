"""The commands that are killed, and what has to be equal afterwards."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_tts.annotation.reader import AnnotationStore

ROOT = Path(__file__).resolve().parents[2]
END_WITHIN = 150.0
"""Seconds a process may take to end after a signal: 120 to a safe point, 30 to close its files (`callbacks/termination.py`)."""

_QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
_COCONUT = "configs/evaluate/demo/tiny-coconut.yaml"
_TRAINED = ["--trainer.precision=32-true", "--checkpoint_minutes=0.02", "--trainer.check_val_every_n_epoch=1"]


@dataclass(frozen=True)
class Workload:
    """One command.

    Attributes:
        name: Of the command.
        options: What follows `python`, but for the folder and the number of processes.
        content: Everything of a finished folder that a kill must not change.
        any_processes: Whether it may go on with another number of processes, and the result does not depend on it.
    """

    name: str
    options: Sequence[str]
    content: Callable[[Path], Any]
    any_processes: bool = False

    def command(self, output: Path, processes: int) -> list[str]:
        """The whole command line."""
        many = "ddp" if processes > 1 else "auto"
        devices = [f"--trainer.devices={processes}", f"--trainer.strategy={many}"]
        return [sys.executable, *self.options, *_QUIET, *devices, f"--output={output}"]


def workloads(annotations: Path) -> dict[str, Workload]:
    """All commands, by name.

    Args:
        annotations: Where those lie, or will, that the reward model is trained on.
    """
    evaluation = [
        "evaluate.py",
        f"--config={_COCONUT}",
        "--data.size=60",
        "--data.batch_size=4",
        "--model.num_rollouts=8",
    ]
    annotated = [
        "evaluate.py",
        "annotate",
        "--config=configs/annotate/tiny.yaml",
        "--data.size=40",
        "--data.batch_size=4",
    ]
    annotated += ["--model.num_continuations=4", "--shard_size=4"]
    reward = [
        "train.py",
        "fit",
        "--config=configs/train/latent-rm-tiny.yaml",
        f"--data.folder={annotations}",
        *_TRAINED,
    ]
    reward += ["--data.batch_size=8", "--data.val_share=0.2", "--trainer.max_epochs=6", "--trainer.log_every_n_steps=1"]
    backbone = ["train.py", "fit", "--config=configs/train/tiny-codi.yaml", *_TRAINED, "--trainer.max_epochs=3"]
    backbone += ["--data.train_size=128", "--data.val_size=8", "--data.batch_size=4", "--model.global_batch_size=16"]
    found = [
        Workload("evaluation", evaluation, results, any_processes=True),
        Workload("annotation", annotated, annotated_problems, any_processes=True),
        Workload("reward", reward, trained),
        Workload("backbone", backbone, trained),
    ]
    return {workload.name: workload for workload in found}


def annotation_for_training(output: Path) -> list[str]:
    """The command that makes what the reward model is trained on."""
    options = ["evaluate.py", "annotate", "--config=configs/annotate/tiny.yaml", "--data.size=600", *_QUIET]
    return [sys.executable, *options, "--trainer.devices=1", f"--output={output}"]


def results(output: Path) -> dict[str, Any]:
    """Records by problem, and metrics but for the throughput."""
    lines = [line for path in sorted(output.glob("predictions/*.jsonl")) for line in path.read_text().splitlines()]
    records = {json.loads(line)["problem_id"]: line for line in lines}
    metrics = json.loads((output / "metrics.json").read_text())
    del metrics["throughput"]
    return {"records": records, "number of lines": len(lines), "metrics": json.dumps(metrics)}


def annotated_problems(output: Path) -> dict[str, Any]:
    """Every annotated problem, by its id."""
    store = AnnotationStore(output)
    rows = {str(index) for path in output.glob("shard-*.parquet") for index in _ids(path)}
    return {"rows": len(rows)} | {
        found.problem_id: hashlib.sha256(
            b"".join(
                [
                    found.latents.float().numpy().tobytes(),
                    found.values.numpy().tobytes(),
                    found.num_latents.numpy().tobytes(),
                    found.correct.numpy().tobytes(),
                    json.dumps([found.question, found.gold, *found.answers]).encode(),
                ]
            )
        ).hexdigest()
        for found in store
    }


def _ids(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return [f"{path.name}/{i}" for i in range(pq.read_metadata(path).num_rows)]


def trained(output: Path) -> dict[str, Any]:
    """The bytes of the exported model."""
    files = sorted(path for path in (output / "model").rglob("*") if path.is_file())
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

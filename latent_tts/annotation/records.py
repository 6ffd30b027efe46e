"""One annotated problem, and how it stands in a row of a Parquet table.

A row holds `problem_id`, `question`, `gold`, `num_steps` (T of this problem), `num_latents` (N), `answers` (N, null where none
parsed), `correct` (N), `all_right`, `all_wrong`, and flat lists `values` (N*T, NaN where there is no latent) and `latents`
(N*T*D, rollout by rollout, step by step; bfloat16 as its 16 bits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from latent_tts.annotation.settings import AnnotationSettings, LatentDtype

DIGEST_KEY = b"latent_tts.settings"  # in a table's metadata: the digest of the settings that it was made with


@dataclass
class AnnotatedProblem:
    """One problem with its N rollouts and the Monte-Carlo value of each of their latent prefixes."""

    problem_id: str
    question: str
    gold: float
    latents: Tensor  # (N, T, D), anything at t >= num_latents
    num_latents: Tensor  # (N,) int
    answers: Sequence[float | None]  # (N,) parsed, None where there is none
    correct: Tensor  # (N,) bool, the rollout's own final answer
    values: Tensor  # (N, T) float32 in [0, 1], NaN where there is no latent or no value

    @property
    def mask(self) -> Tensor:
        """(N, T) bool, True where there is a latent."""
        return torch.arange(self.latents.shape[1]) < self.num_latents[:, None]

    @property
    def all_right(self) -> bool:
        return bool(self.correct.all())

    @property
    def all_wrong(self) -> bool:
        return not bool(self.correct.any())


def check_problem(problem: AnnotatedProblem, settings: AnnotationSettings) -> None:
    """Refuses a problem whose tensors do not have the shapes that the settings say.

    Raises:
        ValueError: Names the first that does not.
    """
    n, t, d = problem.latents.shape
    if n != settings.num_rollouts or d != settings.hidden_size or t > settings.num_latents:
        raise ValueError(
            f"problem {problem.problem_id} has latents of shape {(n, t, d)}, the settings say "
            f"{(settings.num_rollouts, settings.num_latents, settings.hidden_size)}"
        )
    for name in ("num_latents", "answers", "correct", "values"):
        if len(getattr(problem, name)) != n:
            raise ValueError(f"problem {problem.problem_id} has {len(getattr(problem, name))} {name} for {n} rollouts")
    if problem.values.shape != (n, t) or int(problem.num_latents.max()) > t:
        raise ValueError(
            f"problem {problem.problem_id} has values of shape {tuple(problem.values.shape)} for latents {(n, t, d)}"
        )


def table_schema(settings: AnnotationSettings) -> pa.Schema:
    """Columns of the table, with the digest of the settings as metadata."""
    latent_type = {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16()}[settings.latent_dtype]
    columns = {
        "problem_id": pa.string(),
        "question": pa.string(),
        "gold": pa.float64(),
        "num_steps": pa.int32(),
        "num_latents": pa.list_(pa.int32()),
        "answers": pa.list_(pa.float64()),
        "correct": pa.list_(pa.bool_()),
        "all_right": pa.bool_(),
        "all_wrong": pa.bool_(),
        "values": pa.list_(pa.float32()),
        "latents": pa.list_(latent_type),
    }
    return pa.schema(columns, metadata={DIGEST_KEY: settings.digest().encode()})


def to_table(problems: Sequence[AnnotatedProblem], settings: AnnotationSettings) -> pa.Table:
    """Problems as a table of `table_schema`, each cut to the T of its longest rollout."""
    rows = [_row(problem, settings.latent_dtype) for problem in problems]
    schema = table_schema(settings)
    return pa.table([pa.array([row[name] for row in rows], schema.field(name).type) for name in schema.names], schema)


def from_table(row: pa.Table, settings: AnnotationSettings) -> AnnotatedProblem:
    """The problem in a table of one row."""
    bulk = {name: row.column(name)[0].values.to_numpy(zero_copy_only=False) for name in ("values", "latents")}
    small: dict[str, Any] = {name: column[0] for name, column in row.drop_columns(list(bulk)).to_pydict().items()}
    n, t = settings.num_rollouts, small["num_steps"]
    return AnnotatedProblem(
        problem_id=small["problem_id"],
        question=small["question"],
        gold=small["gold"],
        latents=_from_numpy(bulk["latents"], settings.latent_dtype).view(n, t, settings.hidden_size),
        num_latents=torch.tensor(small["num_latents"]),
        answers=small["answers"],
        correct=torch.tensor(small["correct"]),
        values=torch.from_numpy(bulk["values"].copy()).view(n, t),
    )


def _row(problem: AnnotatedProblem, dtype: LatentDtype) -> dict[str, Any]:
    steps = int(problem.num_latents.max())
    mask = problem.mask[:, :steps]
    latents = problem.latents[:, :steps].masked_fill(~mask.unsqueeze(-1), 0.0)
    values = problem.values[:, :steps].float().masked_fill(~mask, float("nan"))
    return {
        "problem_id": problem.problem_id,
        "question": problem.question,
        "gold": problem.gold,
        "num_steps": steps,
        "num_latents": problem.num_latents.tolist(),
        "answers": list(problem.answers),
        "correct": problem.correct.tolist(),
        "all_right": problem.all_right,
        "all_wrong": problem.all_wrong,
        "values": values.reshape(-1).numpy(),
        "latents": _to_numpy(latents.reshape(-1), dtype),
    }


def _to_numpy(latents: Tensor, dtype: LatentDtype) -> np.ndarray[Any, Any]:
    stored = latents.detach().cpu().to(getattr(torch, dtype))
    return stored.view(torch.uint16).numpy() if dtype == "bfloat16" else stored.numpy()


def _from_numpy(flat: np.ndarray[Any, Any], dtype: LatentDtype) -> Tensor:
    stored = torch.from_numpy(flat.copy())
    return (stored.view(torch.bfloat16) if dtype == "bfloat16" else stored).float()

"""Annotated rollouts on disk: a folder of Parquet shards that every rank appends to, and that training reads.

    FOLDER/settings.json                   how the annotations were made (AnnotationSettings); never changes
    FOLDER/shard-00003-000017.parquet      shard 17 of rank 3, put in place whole; one row a problem
    FOLDER/.tmp-00003-...                  a shard being written; a kill may leave one, nobody reads it
    FOLDER/index.json                      written when a run ends: every shard with its number of rows

A row holds `problem_id`, `question`, `gold`, `num_steps` (T of this problem), `num_latents` (N), `answers` (N, null where none
parsed), `correct` (N), `all_right`, `all_wrong`, and flat lists `values` (N*T, NaN where there is no latent) and `latents`
(N*T*D, rollout by rollout, step by step; bfloat16 as its 16 bits). The shards are plain Parquet:
`datasets.load_dataset("parquet", data_files="FOLDER/shard-*.parquet")` reads them.

Promises: a shard is visible only when complete (written aside, synced, renamed); shards are never rewritten; a problem that is
in the folder is refused by the writer, so a run that was killed at any moment is continued by running it again, with any number
of ranks; annotations made with other settings are refused, when writing and when reading.

    writer = AnnotationWriter(folder, settings, rank=trainer.global_rank)
    todo = [problem for problem in batch if problem.problem_id not in writer]
    writer.add(AnnotatedProblem(...))          # kept in memory until a shard is full; the unwritten rest is redone after a kill
    writer.close()                             # writes the rest; then, after a barrier, on rank 0: write_index(folder)

    store = AnnotationStore(folder); store[0].latents     # (N, T, D)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from latent_tts.errors import UserError

SETTINGS_FILE, INDEX_FILE, SHARD_PATTERN = "settings.json", "index.json", "shard-*.parquet"
ROWS_PER_GROUP = 4  # a random read decodes one row group: few rows keep it cheap, more would compress no better
_METADATA_KEY = b"latent_tts.settings"

LatentDtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class AnnotationSettings:
    """Everything that the content of an annotation depends on; two runs may share a folder only when all of it is equal."""

    backbone_fingerprint: str
    """`LatentBackbone.fingerprint()`: sha256 of configuration, weights and tokenizer."""
    backbone_kind: str
    """coconut, codi or colar."""
    hidden_size: int
    """D."""
    num_latents: int
    """T, for CoLaR the maximum."""
    num_rollouts: int
    """N."""
    num_continuations: int
    """M; 0 where prefixes were not valued (only final correctness is known)."""
    sampler: dict[str, Any]
    """Name and parameters, such as {"name": "AdditiveGaussianNoise", "sigma": 0.5}."""
    seed: int
    max_answer_tokens: int
    data: str
    """A description of the data source, such as "gsm8k/train[:2000]"."""
    latent_dtype: LatentDtype = "float32"
    """How latents are stored."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further options of the annotation, such as the value of a prefix with no latents left, or the answer rule."""

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: AnnotationSettings) -> list[str]:
        """Names of the fields in which two settings differ."""
        mine, theirs = (
            json.loads(json.dumps(dataclasses.asdict(one))) for one in (self, other)
        )  # tuples read back as lists
        return [name for name in mine if mine[name] != theirs[name]]


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


class AnnotationWriter:
    """Appends problems to a folder, one writer a rank; see the module docstring for its promises.

    Raises UserError where the folder holds annotations of other settings or a damaged shard.
    """

    def __init__(
        self, folder: str | os.PathLike[str], settings: AnnotationSettings, rank: int = 0, shard_size: int = 64
    ) -> None:
        """shard_size: problems a shard; at most this many (less one) are redone after a kill."""
        if shard_size < 1:
            raise UserError(f"shard_size is {shard_size}; a shard holds at least 1 problem")
        self.folder, self.settings, self.rank, self.shard_size = Path(folder), settings, rank, shard_size
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim_folder()
        for leftover in self.folder.glob(f".tmp-{rank:05d}-*"):  # this rank's half-written shard of a killed run
            leftover.unlink()
        shards = _shards(self.folder)
        self.done: set[str] = {row for shard in shards for row in _column(shard, "problem_id", settings.digest())}
        own = [int(shard.stem.split("-")[2]) for shard in shards if int(shard.stem.split("-")[1]) == rank]
        self._next_shard = max(own, default=-1) + 1
        self._pending: list[AnnotatedProblem] = []

    def __contains__(self, problem_id: str) -> bool:
        return problem_id in self.done

    def add(self, problem: AnnotatedProblem) -> bool:
        """Takes one problem; False, and nothing is written, where the folder has it already."""
        if problem.problem_id in self.done:
            return False
        _check_record(problem, self.settings)
        self.done.add(problem.problem_id)
        self._pending.append(problem)
        if len(self._pending) >= self.shard_size:
            self.flush()
        return True

    def flush(self) -> None:
        """Writes the pending problems as one shard."""
        if not self._pending:
            return
        name = f"{self.rank:05d}-{self._next_shard:06d}"
        partial = self.folder / f".tmp-{name}"
        pq.write_table(
            _table(self._pending, self.settings),
            partial,
            row_group_size=ROWS_PER_GROUP,
            compression="zstd",
            use_dictionary=False,
            write_page_checksum=True,
        )
        _put_in_place(partial, self.folder / f"shard-{name}.parquet")
        self._next_shard += 1
        self._pending.clear()

    def close(self) -> None:
        self.flush()

    def __enter__(self) -> AnnotationWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _claim_folder(self) -> None:
        if (self.folder / SETTINGS_FILE).exists():
            stored = read_settings(self.folder)
            if changed := stored.differences(self.settings):
                raise UserError(
                    f"the annotations in {self.folder} were made with {_spell(stored, changed)}, this run asks for "
                    f"{_spell(self.settings, changed)}; use the same settings or another output folder"
                )
            return
        partial = self.folder / f".tmp-{self.rank:05d}-settings"
        partial.write_text(json.dumps(dataclasses.asdict(self.settings), indent=2, sort_keys=True) + "\n")
        _put_in_place(partial, self.folder / SETTINGS_FILE)  # ranks race here with the same content


class AnnotationStore(Sequence[AnnotatedProblem]):
    """Reads a folder of annotated problems, in the order of their ids whatever the ranks and kills of the run that wrote it.

    Opening reads the small columns of every shard; `store[i]` decodes one row group. A problem found twice (it never is,
    unless folders were merged by hand) counts once. Raises UserError for a folder without annotations, a damaged shard, a shard
    of other settings, or one that the index names and that is gone.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.settings = read_settings(self.folder)
        self._shards = _shards(self.folder)
        _check_index(self.folder, self._shards)
        if not self._shards:
            raise UserError(f"{self.folder} holds no annotated problem yet; run the annotation first")
        columns = ["problem_id", "question", "all_right", "all_wrong", "num_steps"]
        rows: dict[str, tuple[int, int, dict[str, Any]]] = {}
        for number, shard in enumerate(self._shards):
            for row, entry in enumerate(_read(shard, columns, self.settings.digest()).to_pylist()):
                rows.setdefault(entry["problem_id"], (number, row, entry))
        self.problem_ids: list[str] = sorted(rows)
        in_order = [rows[problem_id] for problem_id in self.problem_ids]
        self._where = [(number, row) for number, row, _ in in_order]
        self.questions: list[str] = [entry["question"] for *_, entry in in_order]
        self.all_right: list[bool] = [entry["all_right"] for *_, entry in in_order]
        self.all_wrong: list[bool] = [entry["all_wrong"] for *_, entry in in_order]
        self.num_steps: list[int] = [entry["num_steps"] for *_, entry in in_order]  # most latents of any rollout

    def __len__(self) -> int:
        return len(self.problem_ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number, row = self._where[index]
        shard = self._shards[number]
        try:
            group = _open(shard).read_row_group(row // ROWS_PER_GROUP, use_threads=False)  # works in forked loaders
        except (pa.ArrowException, OSError) as error:
            raise _damaged(shard) from error
        return _record(group.slice(row % ROWS_PER_GROUP, 1), self.settings)

    def __iter__(self) -> Iterator[AnnotatedProblem]:
        return (self[i] for i in range(len(self)))

    def require(self, **expected: Any) -> None:
        """Refuses annotations whose settings are not these, as `store.require(backbone_fingerprint=backbone.fingerprint())`.

        Raises:
            UserError: Names the first of the given settings that differs.
        """
        for name, value in expected.items():
            found = getattr(self.settings, name)
            if found != value:
                raise UserError(
                    f"the annotations in {self.folder} were made with {name.replace('_', ' ')} {found}, training is to use "
                    f"{value}; point to the annotations of this backbone, or annotate with it"
                )


def write_index(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Writes index.json for a finished run (one process, after every rank has closed its writer) and clears away leftovers."""
    folder = Path(folder)
    digest = read_settings(folder).digest()
    rows = {shard.name: len(_column(shard, "problem_id", digest)) for shard in _shards(folder)}
    for leftover in folder.glob(".tmp-*"):
        leftover.unlink()
    index = {"settings": digest, "num_problems": sum(rows.values()), "shards": rows}
    partial = folder / ".tmp-index"
    partial.write_text(json.dumps(index, indent=2) + "\n")
    _put_in_place(partial, folder / INDEX_FILE)
    return index


def read_settings(folder: str | os.PathLike[str]) -> AnnotationSettings:
    path = Path(folder) / SETTINGS_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} holds no annotations ({SETTINGS_FILE} is missing); run the annotation with this output folder"
        )
    try:
        return AnnotationSettings(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(
            f"{path} is not readable as annotation settings ({error}); annotate into another folder"
        ) from error


def _check_record(problem: AnnotatedProblem, settings: AnnotationSettings) -> None:
    n, t, d = problem.latents.shape
    if n != settings.num_rollouts or d != settings.hidden_size or t > settings.num_latents:
        raise ValueError(
            f"problem {problem.problem_id} has latents of shape {(n, t, d)}, the settings say "
            f"{(settings.num_rollouts, settings.num_latents, settings.hidden_size)}"
        )
    for name, length in (("num_latents", n), ("answers", n), ("correct", n), ("values", n)):
        if len(getattr(problem, name)) != length:
            raise ValueError(f"problem {problem.problem_id} has {len(getattr(problem, name))} {name} for {n} rollouts")
    if problem.values.shape != (n, t) or int(problem.num_latents.max()) > t:
        raise ValueError(
            f"problem {problem.problem_id} has values of shape {tuple(problem.values.shape)} for latents {(n, t, d)}"
        )


def _table(problems: Sequence[AnnotatedProblem], settings: AnnotationSettings) -> pa.Table:
    latent_type = {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16()}[settings.latent_dtype]
    steps = [int(problem.num_latents.max()) for problem in problems]
    masks = [problem.mask[:, :t] for problem, t in zip(problems, steps, strict=True)]
    latents, values = [], []
    for problem, t, mask in zip(problems, steps, masks, strict=True):
        latents.append(_to_numpy((problem.latents[:, :t] * mask[..., None]).reshape(-1), settings.latent_dtype))
        values.append(problem.values[:, :t].float().masked_fill(~mask, float("nan")).reshape(-1).numpy())
    columns = {
        "problem_id": pa.array([p.problem_id for p in problems], pa.string()),
        "question": pa.array([p.question for p in problems], pa.string()),
        "gold": pa.array([p.gold for p in problems], pa.float64()),
        "num_steps": pa.array(steps, pa.int32()),
        "num_latents": pa.array([p.num_latents.tolist() for p in problems], pa.list_(pa.int32())),
        "answers": pa.array([list(p.answers) for p in problems], pa.list_(pa.float64())),
        "correct": pa.array([p.correct.tolist() for p in problems], pa.list_(pa.bool_())),
        "all_right": pa.array([p.all_right for p in problems], pa.bool_()),
        "all_wrong": pa.array([p.all_wrong for p in problems], pa.bool_()),
        "values": pa.array(values, pa.list_(pa.float32())),
        "latents": pa.array(latents, pa.list_(latent_type)),
    }
    return pa.table(columns).replace_schema_metadata({_METADATA_KEY: settings.digest().encode()})


def _record(row: pa.Table, settings: AnnotationSettings) -> AnnotatedProblem:
    """The problem in a table of one row."""
    bulk = {name: row.column(name)[0].values.to_numpy(zero_copy_only=False) for name in ("values", "latents")}
    small = {name: column[0] for name, column in row.drop_columns(list(bulk)).to_pydict().items()}
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


def _to_numpy(latents: Tensor, dtype: LatentDtype) -> np.ndarray[Any, Any]:
    stored = latents.detach().cpu().to(getattr(torch, dtype))
    return stored.view(torch.uint16).numpy() if dtype == "bfloat16" else stored.numpy()


def _from_numpy(flat: np.ndarray[Any, Any], dtype: LatentDtype) -> Tensor:
    stored = torch.from_numpy(flat.copy())
    return (stored.view(torch.bfloat16) if dtype == "bfloat16" else stored).float()


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob(SHARD_PATTERN))


@functools.lru_cache(maxsize=64)
def _open_stamped(path: str, stamp: tuple[int, int], process: int) -> pq.ParquetFile:
    return pq.ParquetFile(path, page_checksum_verification=True)


def _open(shard: Path) -> pq.ParquetFile:
    stat = shard.stat()
    return _open_stamped(
        str(shard), (stat.st_size, stat.st_mtime_ns), os.getpid()
    )  # an open file is not shared by a fork


def _read(shard: Path, columns: list[str], digest: str) -> pa.Table:
    try:
        file = _open(shard)
        table = file.read(columns)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(shard) from error
    if (file.schema_arrow.metadata or {}).get(_METADATA_KEY) != digest.encode():
        raise UserError(
            f"{shard} was made with other settings than {SETTINGS_FILE} beside it says; move it out of the folder"
        )
    return table


def _column(shard: Path, name: str, digest: str) -> list[Any]:
    values: list[Any] = _read(shard, [name], digest).column(name).to_pylist()
    return values


def _damaged(shard: Path) -> UserError:
    return UserError(
        f"{shard} is truncated or damaged; delete it and run the annotation again, which redoes only its problems"
    )


def _check_index(folder: Path, shards: list[Path]) -> None:
    path = folder / INDEX_FILE
    if not path.is_file():  # the run was killed or is still going: what is there can be read all the same
        return
    missing = sorted(set(json.loads(path.read_text())["shards"]) - {shard.name for shard in shards})
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} shard(s) named in {INDEX_FILE}, such as {missing[0]}; put them back, or "
            f"delete {INDEX_FILE} to go on without them"
        )


def _put_in_place(partial: Path, final: Path) -> None:
    """Makes a finished file visible under its name, or not at all."""
    for path in (partial, partial.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if path == partial:
            os.replace(partial, final)


def _spell(settings: AnnotationSettings, names: list[str]) -> str:
    return ", ".join(f"{name}={getattr(settings, name)}" for name in names)

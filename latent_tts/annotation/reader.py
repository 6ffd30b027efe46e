"""Annotated rollouts as training reads them: `AnnotationStore(folder)[0].latents`, (N, T, D)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa

from latent_tts.annotation.records import AnnotatedProblem, from_table
from latent_tts.annotation.settings import read_settings
from latent_tts.annotation.shards import INDEX_FILE, damaged, open_shard, read_columns, shard_paths
from latent_tts.errors import UserError

if TYPE_CHECKING:
    import pyarrow.dataset as ds


@dataclass(frozen=True)
class _Place:
    """Where a problem is stored, and the small columns of its row."""

    shard: int
    row: int
    problem_id: str
    question: str
    all_right: bool
    all_wrong: bool
    num_steps: int


class AnnotationStore(Sequence[AnnotatedProblem]):
    """Reads a folder of annotated problems, in the order of their ids whatever the ranks and kills of the run that wrote it.

    Opening reads the small columns of every shard; `store[i]` decodes one row group. A problem found twice (it never is,
    unless folders were merged by hand) counts once. It can be handed to the worker processes of a loader.

    Raises:
        UserError: The folder holds no annotations, a damaged shard or one of other settings, or lacks one that its index names.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.settings = read_settings(self.folder)
        self._paths = shard_paths(self.folder)
        _check_index(self.folder, self._paths)
        if not self._paths:
            raise UserError(f"{self.folder} holds no annotated problem yet; run the annotation first")
        self._groups: dict[int, list[tuple[int, ds.ParquetFileFragment]]] = {}
        places: dict[str, _Place] = {}
        columns = ["problem_id", "question", "all_right", "all_wrong", "num_steps"]
        for number, path in enumerate(self._paths):
            for row, entry in enumerate(read_columns(path, columns, self.settings).to_pylist()):
                places.setdefault(entry["problem_id"], _Place(number, row, **entry))
        self._places = [places[problem_id] for problem_id in sorted(places)]
        self.problem_ids = [place.problem_id for place in self._places]
        self.questions = [place.question for place in self._places]
        self.all_right = [place.all_right for place in self._places]
        self.all_wrong = [place.all_wrong for place in self._places]
        self.num_steps = [place.num_steps for place in self._places]  # most latents of any rollout

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> AnnotatedProblem: ...

    @overload
    def __getitem__(self, index: slice) -> list[AnnotatedProblem]: ...

    def __getitem__(self, index: int | slice) -> AnnotatedProblem | list[AnnotatedProblem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = self._places[index]
        path = self._paths[place.shard]
        try:
            first, group = self._group(place)
            rows = group.to_table(use_threads=False)  # works in forked loaders
        except (pa.ArrowException, OSError) as error:
            raise damaged(path) from error
        return from_table(rows.slice(place.row - first, 1), self.settings)

    def __iter__(self) -> Iterator[AnnotatedProblem]:
        return (self[i] for i in range(len(self)))

    def require(self, **expected: object) -> None:
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

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_groups": {}}  # open files stay with their process

    def _group(self, place: _Place) -> tuple[int, ds.ParquetFileFragment]:
        """The row group that holds a row, and the number of its first row."""
        if place.shard not in self._groups:
            groups = open_shard(self._paths[place.shard], self.settings).split_by_row_group()
            firsts = [0]
            for group in groups:
                firsts.append(firsts[-1] + group.row_groups[0].num_rows)
            self._groups[place.shard] = list(zip(firsts, groups, strict=False))
        first, group = next(pair for pair in reversed(self._groups[place.shard]) if pair[0] <= place.row)
        return first, group


def _check_index(folder: Path, paths: list[Path]) -> None:
    index = folder / INDEX_FILE
    if not index.is_file():  # the run was killed or is still going: what is there can be read all the same
        return
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["shards"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{index} cannot be read ({error}); delete it, the annotation's next run writes it anew"
        ) from error
    missing = sorted(named - {path.name for path in paths})
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} shard(s) named in {INDEX_FILE}, such as {missing[0]}; put them back, or "
            f"delete {INDEX_FILE} to go on without them"
        )

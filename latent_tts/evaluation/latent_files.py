"""The latents of a run on disk, where `--model.keep_latents true` keeps them: OUTPUT/latents/*.safetensors.

A file holds what one batch has added. Of each problem it has two tensors, `PROBLEM.FIRST.latents` (n, T, D) float32 and
`PROBLEM.FIRST.num_latents` (n,) int64, of rollouts FIRST to FIRST + n - 1: a run that grows to more rollouts adds theirs.
T is the largest number of thoughts among them. A file is written aside and renamed before the records of its problems are
written; what a kill has left without its record is cut out by the next run, so that every rollout's latents are there once.

    from latent_tts.evaluation.latent_files import LatentFiles
    kept = LatentFiles("results/RUN")
    for problem_id in kept.problem_ids:
        latents = kept.read(problem_id).latents  # (N, T, D)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from latent_tts.errors import UserError

LATENTS = "latents"


@dataclass(frozen=True)
class KeptLatents:
    """The latents of a problem's rollouts.

    Attributes:
        latents: (N, T, D) float32 on the CPU, 0 where a rollout thought less.
        num_latents: (N,) int64.
    """

    latents: Tensor
    num_latents: Tensor

    def __len__(self) -> int:
        """N."""
        return len(self.num_latents)


class LatentFiles:
    """What is kept of a run; files are opened when a problem is read.

    Args:
        run: The run's folder; there may be no latents in it.

    Raises:
        UserError: A file of latents is damaged.
    """

    def __init__(self, run: str | Path) -> None:
        self.folder = Path(run) / LATENTS
        self._chunks: dict[str, dict[int, Path]] = {}
        self._sizes: dict[tuple[str, int], int] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            self._index(path)

    @property
    def problem_ids(self) -> list[str]:
        """Of all problems with latents."""
        return list(self._chunks)

    def __contains__(self, problem_id: str) -> bool:
        return problem_id in self._chunks

    def num_rollouts(self, problem_id: str) -> int:
        """How many rollouts of a problem are kept, from the first on."""
        count = 0
        while count in self._chunks.get(problem_id, {}):
            count += self._sizes[problem_id, count]
        return count

    def read(self, problem_id: str) -> KeptLatents:
        """The latents of a problem.

        Raises:
            UserError: None are kept.
        """
        chunks = self._chunks.get(problem_id)
        if not chunks:
            raise UserError(
                f"{self.folder} holds no latents of problem {problem_id}: run it with --model.keep_latents true."
            )
        parts = [_read(path, problem_id, first) for first, path in sorted(chunks.items())]
        longest = max(part.latents.shape[1] for part in parts)
        padded = [pad(part.latents, (0, 0, 0, longest - part.latents.shape[1])) for part in parts]
        return KeptLatents(torch.cat(padded), torch.cat([part.num_latents for part in parts]))

    def add(self, rank: int, latents: Mapping[str, KeptLatents]) -> None:
        """Keeps what is not kept yet of problems, in one file, whole or not at all.

        Args:
            rank: This process' rank.
            latents: All N rollouts of each problem, by id.
        """
        tensors: dict[str, Tensor] = {}
        for problem_id, all_of_it in latents.items():
            first = self.num_rollouts(problem_id)
            if first < len(all_of_it):
                counts = all_of_it.num_latents[first:].cpu()
                longest = int(counts.max())
                tensors[f"{problem_id}.{first}.latents"] = (
                    all_of_it.latents[first:, :longest].detach().to("cpu", torch.float32).contiguous()
                )
                tensors[f"{problem_id}.{first}.num_latents"] = counts.contiguous()
        if tensors:
            path = self.folder / f"rank-{rank:05d}-{_digest(list(tensors))}.safetensors"
            _write(path, tensors)
            self._index(path)

    def cut_to(self, num_rollouts: Mapping[str, int]) -> None:
        """Cuts out what is kept of problems without a record, or of more rollouts than it has.

        Args:
            num_rollouts: Of the records on disk, by problem id.
        """
        for path in sorted({path for chunks in self._chunks.values() for path in chunks.values()}):
            mine = [(one, first) for one, chunks in self._chunks.items() for first in chunks if chunks[first] == path]
            good = [(one, first) for one, first in mine if first + self._sizes[one, first] <= num_rollouts.get(one, 0)]
            if len(good) < len(mine):
                self._rewrite(path, good)
                for one, first in set(mine) - set(good):
                    del self._chunks[one][first]
        self._chunks = {one: chunks for one, chunks in self._chunks.items() if chunks}

    def _rewrite(self, path: Path, chunks: list[tuple[str, int]]) -> None:
        if not chunks:
            path.unlink()
            return
        tensors = {}
        for problem_id, first in chunks:
            part = _read(path, problem_id, first)
            tensors[f"{problem_id}.{first}.latents"] = part.latents.clone()
            tensors[f"{problem_id}.{first}.num_latents"] = part.num_latents.clone()
        _write(path, tensors)

    def _index(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    problem_id, first, what = name.rsplit(".", 2)
                    if what == "num_latents":
                        self._chunks.setdefault(problem_id, {})[int(first)] = path
                        self._sizes[problem_id, int(first)] = file.get_slice(name).get_shape()[0]
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): start afresh with another --output.") from error


def read_latents(run: str | Path, problem_id: str) -> KeptLatents:
    """The latents of one problem of a run; `LatentFiles` reads many without looking through the folder each time.

    Raises:
        UserError: None are kept, or a file is damaged.
    """
    return LatentFiles(run).read(problem_id)


def _read(path: Path, problem_id: str, first: int) -> KeptLatents:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names = (f"{problem_id}.{first}.{what}" for what in ("latents", "num_latents"))
        return KeptLatents(*map(file.get_tensor, names))


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    save_file(tensors, aside)
    os.replace(aside, path)


def _digest(names: list[str]) -> str:
    return blake2b("\0".join(names).encode(), digest_size=8).hexdigest()

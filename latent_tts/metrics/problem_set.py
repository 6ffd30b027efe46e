"""Which problems were counted, as one number."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import torch
from torch import Tensor
from torchmetrics import Metric


def _fingerprint_update(problem_id: str, question: str, gold: float) -> int:
    """63 bits of a problem; of two sets that differ in one problem the sums differ."""
    digest = blake2b(f"{problem_id}\0{question}\0{gold!r}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _fingerprint_compute(total: Tensor) -> str:
    return f"{int(total) % 2**64:016x}"


class ProblemSetFingerprint(Metric):
    """16 hex characters that depend on the problems with their gold answers, not on their order, batches or ranks."""

    full_state_update = False
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")  # wraps

    def update(self, problems: Iterable[tuple[str, str, float]]) -> None:
        """Adds problems, each as id, question and gold answer."""
        added = sum(_fingerprint_update(*problem) for problem in problems)
        self.total += (added + 2**63) % 2**64 - 2**63

    def compute(self) -> str:
        """The fingerprint."""
        return _fingerprint_compute(self.total)

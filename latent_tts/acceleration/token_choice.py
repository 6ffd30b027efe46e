"""The most likely token of every row, and the scores to draw by: hidden states (R, D) times the output matrix (V, D).

Three ways to the same token, the first wherever the other two are not known to pay:

    plain      all scores in the model's type, then their arg-max
    packed     a small matrix on a CPU with kernels: the same, by them, so that a row's scores do not depend on the others
    screened   a large matrix on a CPU with units for bfloat16 matrices: bfloat16 scores rule out every token that cannot be
               the most likely one, and the few that are left are scored in float32. These scores are made transposed, (V, R),
               so that the big matrix is read as it lies and the maximum of a block of tokens is one operation over rows

Where tokens are drawn all scores are needed: packed whatever the size of the matrix, of which that is a copy.

Screening is exact, and finds the arg-max of float32 scores for weights in bfloat16 too. With w', h' rounded to bfloat16, a
score errs by at most |h'| |w - w'| + |h - h'| |w| (Cauchy-Schwarz), plus D 2^-24 |h'| |w'| for sums in float32; that it is then
stored in bfloat16 adds at most 2^-8 of itself. With e the sum of the first three, for the largest norms in the table, a token is
ruled out only if its score plus e is below the best score minus e, the error of storing included on both sides.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from latent_tts.acceleration.kernels import products
from latent_tts.acceleration.layers import has_bfloat16_units

T = TypeVar("T")

ROWS_AT_A_TIME = 256  # rows scored at a time, which bounds the memory of the scores
_BLOCK = 64  # tokens whose maximum is taken first
_MIN_WEIGHTS = 1 << 22  # a smaller matrix is not screened, but packed, which is a copy of it
_MAX_CANDIDATES = 128  # of a row; one with more is scored the plain way
_CANDIDATES = 4096  # scored in float32 at a time
_SLACK = 1.001  # covers the rounding of the norms themselves


@dataclass
class Screen:
    """A table (V, D) in bfloat16, and the largest norms that bound the error of scores made with it."""

    table: Tensor
    error: float  # max |w - w'|
    norm: float  # max |w|

    @classmethod
    def of(cls, table: Tensor) -> Screen:
        rounded = table.to(torch.bfloat16)
        chunks = zip(table.split(_CANDIDATES), rounded.split(_CANDIDATES), strict=True)
        errors = [(exact.float() - coarse.float()).norm(dim=1).max() for exact, coarse in chunks]
        norms = [exact.float().norm(dim=1).max() for exact in table.split(_CANDIDATES)]
        return cls(rounded, float(torch.stack(errors).max()), float(torch.stack(norms).max()))


class _Copy(Generic[T]):
    """What was made of a matrix, kept for as long as that is unchanged."""

    def __init__(self) -> None:
        self._copy: T | None = None
        # The matrix it is of, where that was, and how often it had changed.
        self._copied: tuple[weakref.ref[Tensor], int, int] | None = None

    def of(self, table: Tensor, make: Callable[[], T]) -> T:
        """What was made of a matrix before, unless it was another one or has changed."""
        same = self._copied is not None and self._copied[0]() is table and self._copied[1:] == _version(table)
        if self._copy is None or not same:
            self._copy, self._copied = make(), (weakref.ref(table), *_version(table))
        return self._copy


class Vocabulary:
    """Scores and chooses tokens for one model; remembers the copies of its output matrix that it needs."""

    def __init__(self) -> None:
        self._screen, self._panels = _Copy[Screen](), _Copy[Tensor]()

    def __reduce__(self) -> tuple[type[Vocabulary], tuple[()]]:
        return Vocabulary, ()  # a copy of the model has a matrix of its own

    def most_likely(self, hidden: Tensor, output: nn.Module, scores: Callable[[Tensor], Tensor]) -> Tensor:
        """Arg-max token of every row: (R, D) to (R,); of equal scores the first.

        Args:
            hidden: (R, D).
            output: The model's output layer.
            scores: The plain way, (R', D) to (R', V).
        """
        return torch.cat([self._choose(rows, output, scores) for rows in hidden.split(ROWS_AT_A_TIME)])

    def scores(self, hidden: Tensor, output: nn.Module) -> Tensor:
        """What the output layer gives: (R, D) to (R, V); packed where it can be, so that no row depends on the others."""
        found = self._packed(hidden, output.weight) if _is_fixed_matrix(hidden, output) else None  # type: ignore[arg-type]
        plain: Tensor = output(hidden) if found is None else found
        return plain

    def _choose(self, hidden: Tensor, output: nn.Module, scores: Callable[[Tensor], Tensor]) -> Tensor:
        if not _is_fixed_matrix(hidden, output):
            return scores(hidden).argmax(dim=-1)
        table = output.weight
        assert isinstance(table, Tensor)
        if table.numel() >= _MIN_WEIGHTS:
            return self._screened(hidden, table) if has_bfloat16_units() else scores(hidden).argmax(dim=-1)
        packed = self._packed(hidden, table)
        return (scores(hidden) if packed is None else packed).argmax(dim=-1)

    def _screened(self, hidden: Tensor, table: Tensor) -> Tensor:
        return screened_argmax(hidden, table, self._screen.of(table, lambda: Screen.of(table.detach())))

    def _packed(self, hidden: Tensor, table: Tensor) -> Tensor | None:
        """Rows (R, D) times a matrix (V, D) by the kernels; None where there are none for it."""
        if not products.suits(hidden, table.shape[1]):
            return None
        panels = self._panels.of(table, lambda: products.pack(table.detach().t()))
        return products.product(hidden, panels, None, len(table))


def _is_fixed_matrix(hidden: Tensor, output: nn.Module) -> bool:
    """Whether the output layer is a matrix on the CPU, and nothing else, of the hidden states' type, and no longer trained."""
    if not isinstance(output, nn.Linear) or output.bias is not None or output.weight.is_inference():
        return False
    table = output.weight
    if table.requires_grad:  # an optimizer's changes can go unnoticed
        return False
    known = hidden.dtype == table.dtype and table.dtype in (torch.bfloat16, torch.float32)
    return known and table.device.type == "cpu"


def _version(table: Tensor) -> tuple[int, int]:
    """Changes when the tensor is written to, or gets other memory."""
    return table.data_ptr(), table._version


def block_scores(hidden: Tensor, table: Tensor) -> Tensor:
    """Scores of rows (R, D) in blocks of tokens, (V / 64, 64, R); places past the last token hold -inf."""
    size = len(table)
    scores = table.new_empty(-(-size // _BLOCK) * _BLOCK, len(hidden))
    torch.mm(table, hidden.t(), out=scores[:size])
    scores[size:] = float("-inf")
    return scores.view(-1, _BLOCK, len(hidden))


def screened_argmax(hidden: Tensor, table: Tensor, screen: Screen) -> Tensor:
    """Arg-max of float32 scores, hidden (R, D) times table (V, D) of either type, by the module's docstring: (R,)."""
    coarse = hidden.to(torch.bfloat16)
    scores = block_scores(coarse, screen.table)
    rows, tokens = _candidates(scores, _error(hidden, coarse, screen))
    counts = rows.bincount(minlength=len(hidden))
    is_open = (counts == 0) | (counts > _MAX_CANDIDATES)  # none: a score that is not a number
    settled = ~is_open[rows]
    rows, tokens = rows[settled], tokens[settled]
    pairs = zip(rows.split(_CANDIDATES), tokens.split(_CANDIDATES), strict=True)
    exact = torch.cat([(hidden[row].float() * table[token].float()).sum(dim=1) for row, token in pairs])
    best = torch.full((len(hidden),), float("-inf"), device=hidden.device).scatter_reduce(0, rows, exact, "amax")
    wins = exact == best[rows]
    chosen = torch.full_like(counts, len(table)).scatter_reduce(0, rows[wins], tokens[wins], "amin")
    if bool(is_open.any()):
        chosen[is_open] = (hidden[is_open].float() @ table.t().float()).argmax(dim=-1)
    return chosen


def _error(hidden: Tensor, coarse: Tensor, screen: Screen) -> Tensor:
    """Bound (R,) of what the bfloat16 scores of a row are off by, before they are stored."""
    lost, kept = (hidden.float() - coarse.float()).norm(dim=1), coarse.float().norm(dim=1)
    sums = hidden.shape[1] * 2.0**-24 * kept * (screen.norm + screen.error)
    bound: Tensor = _SLACK * (kept * screen.error + lost * screen.norm + sums)
    return bound


def _candidates(scores: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and tokens (K,) that may be the most likely ones, from bfloat16 scores (J, 64, R) and error bounds (R,)."""
    maxima = scores.amax(dim=1)  # (J, R)
    best = maxima.amax(dim=0).float()
    threshold = best - 2 * error - 2.0**-8 * best.abs()  # both scores were rounded when they were stored
    threshold = threshold - 2.0**-8 * threshold.abs()
    block, row = (maxima >= threshold).nonzero(as_tuple=True)
    pair, place = (scores[block, :, row] >= threshold[row].unsqueeze(1)).nonzero(as_tuple=True)
    return row[pair], block[pair] * _BLOCK + place

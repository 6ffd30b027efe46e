"""Sums that are the same to the bit whatever the order of their terms: over problems, batches, ranks and runs that went on.

A float64 sum depends on the order in which it is taken, by its last digits, and then a rounded figure in a file differs between
one process and two. Here a value is cut into three integers of its sign,

    value = whole + fraction * 2^-32 + rest * 2^-64      fraction and rest below 2^32 in size

each value once and for all (what is below 2^-64 is cut off), and the integers are summed, which no order changes. The total is
rounded once, to the nearest float64. It is exact for fewer than 2^31 terms with sums below 2^63.
"""

from __future__ import annotations

import torch
from torch import Tensor

PARTS = 3
_UNIT = 2.0**32


def exact_parts(values: Tensor) -> Tensor:
    """The integers of finite values below 2^63 in size: (...) to (..., 3) int64, to be summed over any dimension but the last."""
    values = values.double()
    # towards zero: what is left is then exact, which it is not from -1e-20 down to -1
    fraction = (values - values.trunc()) * _UNIT
    rest = (fraction - fraction.trunc()) * _UNIT
    return torch.stack([values, fraction, rest], -1).long()


def exact_total(parts: Tensor) -> Tensor:
    """What summed integers (..., 3) stand for, correctly rounded: (...) float64 on the CPU, which every machine has there."""
    rows = parts.reshape(-1, PARTS).tolist()
    totals = [((whole << 64) + (fraction << 32) + rest) / (1 << 64) for whole, fraction, rest in rows]
    return torch.tensor(totals, dtype=torch.float64).reshape(parts.shape[:-1])

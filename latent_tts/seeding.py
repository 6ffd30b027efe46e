"""Random numbers as a pure function of a key, vectorised over rows: no generator, no state, nothing global.

A key is an int64 that names one stream: (seed, problem id) to begin with, then folded with the rollout, the step and the
site of the draw. Element i of a draw is the SplitMix64 output function applied to ``key + (i + 1) * golden ratio``
(Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"), so a row's numbers do not depend on which
other rows are drawn with it, in what order, or on which device.

Integer arithmetic wraps modulo 2^64; right shifts are made logical by masking, since torch's int64 shift is arithmetic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

WITHOUT_FLOAT64 = {"mps"}  # types of devices

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MULTIPLIER_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = -7723592293110705685  # 0x94D049BB133111EB


def problem_keys(seed: int, problem_ids: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
    """One key per problem from the seed and the problem's id: (P,) int64."""
    digests = (hashlib.blake2b(f"{seed}\0{problem_id}".encode(), digest_size=8).digest() for problem_id in problem_ids)
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64, device=device)


def fold_in(keys: Tensor, data: int | Tensor) -> Tensor:
    """New keys from keys and an integer (or a tensor of them that broadcasts); distinct data give unrelated keys."""
    return _mix(_mix(keys) + (_wrapped((data + 1) * _GOLDEN) if isinstance(data, int) else (data + 1) * _GOLDEN))


def widest_float(device: torch.device) -> torch.dtype:
    """The most precise type of floats that a device has: Apple's GPUs have no float64."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def uniform(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers in the open interval (0, 1), exact multiples of 2^-54: keys (R...) to (R..., *shape) float64.

    Keys on a device without float64 are brought to the CPU, where the same numbers are made, and stay.
    """
    keys = _on_host(keys) if keys.device.type in WITHOUT_FLOAT64 else keys
    bits = _shift_right(_bits(keys, _size(shape)), 11)
    return ((bits.double() + 0.5) * 2.0**-53).reshape(*keys.shape, *shape)


def normal(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers by the inverse distribution function: keys (R...) to (R..., *shape) float32.

    ``ndtri`` runs one scalar routine per element, in float64, so a number does not depend on where in a vector register
    it fell; ``torch.randn`` and the vectorised ``log`` and ``cos`` of Box-Muller make no such promise.
    """
    numbers: Tensor = torch.special.ndtri(uniform(keys, shape)).float()
    return numbers.to(keys.device)


def keep_mask(keys: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
    """Dropout's keep decisions, true with probability 1 - p: keys (R...) to (R..., *shape) bool.

    Each 64-bit draw serves two elements, so p is met to within 2^-32.
    """
    size = _size(shape)
    halves = _bits(keys, (size + 1) // 2).view(torch.int32)[..., :size]
    threshold = min(max(round(p * 2**32), 0), 2**32 - 1) - 2**31
    return (halves >= threshold).reshape(*keys.shape, *shape)


def _on_host(keys: Tensor) -> Tensor:
    return keys.cpu()


def _wrapped(number: int) -> int:
    """A Python integer modulo 2^64, as a signed one: what int64 arithmetic gives on a device, without a copy to it."""
    return (number + 2**63) % 2**64 - 2**63


def _bits(keys: Tensor, count: int) -> Tensor:
    counters = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device)
    return _mix(keys.unsqueeze(-1) + counters * _GOLDEN)  # (R..., count)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIER_1
    x = (x ^ _shift_right(x, 27)).mul_(_MULTIPLIER_2)
    return x.bitwise_xor_(_shift_right(x, 31))


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size

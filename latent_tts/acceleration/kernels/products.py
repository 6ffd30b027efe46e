"""Products with weights stored in panels, see ``products.cpp``: float32, and bfloat16 where the processor has AMX."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from latent_tts.acceleration.kernels import library

_VECTORS = 3  # of columns in a panel in float32
_TILE = 32  # columns of a panel in bfloat16, and values of k in a tile
_PAIRS = 16  # of k in a tile; as many columns has a block


def suits(x: Tensor, num_inputs: int) -> bool:
    """Whether rows x (..., K) can be multiplied with packed weights (K, N) of the same type, here and now."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.numel() == 0:
        return False
    kernels = library.kernels()
    if kernels is None:
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and kernels.has_tiles and num_inputs % _TILE == 0)


def pack(matrix: Tensor) -> Tensor:
    """The weights (K, N) in panels: (K * N',), where N' is N up to whole vectors and what is beyond N are zeros."""
    num_outputs = matrix.shape[1]
    whole = nn.functional.pad(matrix, (0, _whole_vectors(num_outputs, matrix.dtype) - num_outputs))
    panels = whole.new_empty(whole.numel())
    for part, view in _parts(whole, panels):
        view.copy_(part)
    return panels


def unpack(panels: Tensor, num_inputs: int, num_outputs: int) -> Tensor:
    """The weights (K, N) that `pack` was given."""
    matrix = panels.new_empty(num_inputs, _whole_vectors(num_outputs, panels.dtype))
    for part, view in _parts(matrix, panels):
        part.copy_(view)
    return matrix[:, :num_outputs]


def product(x: Tensor, panels: Tensor, bias: Tensor | None, num_outputs: int) -> Tensor:
    """x (..., K) times packed weights (K, N), plus bias (N,): (..., N), summed in float32; only where `suits` says yes."""
    kernels = library.kernels()
    assert kernels is not None
    x = x.contiguous()
    width = _whole_vectors(num_outputs, x.dtype)
    if bias is not None and width > num_outputs:
        bias = nn.functional.pad(bias, (0, width - num_outputs))
    y = x.new_empty(*x.shape[:-1], width)
    kernels.run("product", x.dtype, x, panels, bias, y, x.numel() // x.shape[-1], x.shape[-1], width)
    return y if width == num_outputs else y[..., :num_outputs].contiguous()


def _parts(matrix: Tensor, panels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of the matrix (K, N) and of the panels, alike in shape, that hold the same weights: full panels, and what is left."""
    inputs, outputs = matrix.shape
    full = _panel_width(matrix.dtype)
    middle = outputs // full * full
    for first, last, width in ((0, middle, full), (middle, outputs, outputs - middle)):
        if first == last:
            continue
        part, stored = matrix[:, first:last], panels[inputs * first : inputs * last]
        if matrix.dtype == torch.float32:
            yield part.unflatten(1, (-1, width)), stored.view(-1, inputs, width).transpose(0, 1)
        else:  # stored as panel, tile, block, pair, column, place in the pair
            blocks = stored.view(-1, inputs // _TILE, width // _PAIRS, _PAIRS, _PAIRS, 2)
            columns = part.unflatten(1, (-1, width // _PAIRS, _PAIRS))
            yield columns.unflatten(0, (-1, _PAIRS, 2)), blocks.permute(1, 3, 5, 0, 2, 4)


def _whole_vectors(num_outputs: int, dtype: torch.dtype) -> int:
    """The least number of columns from `num_outputs` on that the kernel multiplies with."""
    kernels = library.kernels()
    assert kernels is not None
    columns = kernels.lanes if dtype == torch.float32 else _PAIRS
    return -(-num_outputs // columns) * columns


def _panel_width(dtype: torch.dtype) -> int:
    kernels = library.kernels()
    assert kernels is not None
    return _VECTORS * kernels.lanes if dtype == torch.float32 else _TILE

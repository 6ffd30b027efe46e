"""A library whose products depend on their shapes, as a GPU's may; run as a script it evaluates by it, on every process.

What an element is off by is a function of the operands' shapes and of its place: all that an element's bits may depend on where
no kernel adds in an order of its own.
"""

from __future__ import annotations

from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "linear", "matmul", "_scaled_dot_product")
ERROR = 1e-5  # relative, at most: above rounding, so that it shows in the six digits of a score, and below what loading checks
NO_KERNELS = "latent_tts.acceleration.kernels.library.kernels"


@cache
def _errors(shapes: tuple[torch.Size, ...], shape: torch.Size) -> Tensor:
    generator = torch.Generator().manual_seed(hash(shapes) % 2**63)
    return 1 + ERROR * (2 * torch.rand(shape, generator=generator) - 1)


class ShapedProducts(TorchDispatchMode):
    """Within it every product of float32 tensors errs by shape and place."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").split(".")[0]
        if not name.startswith(PRODUCTS):
            return out
        shapes = tuple(one.shape for one in args if isinstance(one, Tensor))
        first, *others = out if isinstance(out, tuple) else (out,)
        first = first.mul_(_errors(shapes, first.shape))
        return (first, *others) if isinstance(out, tuple) else first


def main() -> int:
    """Evaluates with the words of the command line, without kernels and by this library."""
    from commands.evaluate import EvaluationCLI
    from commands.guard import main_guard

    with patch(NO_KERNELS, lambda: None), ShapedProducts():
        return main_guard(lambda: EvaluationCLI().run())


if __name__ == "__main__":
    raise SystemExit(main())

"""The devices that everything is run on: a GPU that is pretended, and the real ones of this machine.

The CPU is what they are compared with; what is right there, the other tests say.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import pytest
import torch
from torch import nn

from tests.devices.pretended import PRETENDED, PretendedDevice, pretended_device

M = TypeVar("M", bound=nn.Module)


@dataclass
class Place:
    """Where a test runs.

    Attributes:
        device: What modules are moved to.
        log: What happened on it, where it is the pretended one.
        tolerance: Largest relative and absolute difference from the CPU that is rounding. On a real GPU other products sum in
            another order, and thoughts feed themselves back (docs/performance.md): 1e-3 after three thoughts.
    """

    device: torch.device
    log: PretendedDevice | None = None
    tolerance: float = 1e-4

    def put(self, module: M) -> M:
        """A copy of a module, moved there."""
        return deepcopy(module).to(self.device)

    def close(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Asserts that tensors agree to rounding, wherever they lie."""
        torch.testing.assert_close(left.detach().cpu(), right.detach().cpu(), rtol=self.tolerance, atol=self.tolerance)


REAL = [name for name, there in (("cuda", torch.cuda), ("mps", torch.backends.mps)) if there.is_available()]


@pytest.fixture(params=["pretended", *(pytest.param(name, marks=pytest.mark.gpu) for name in REAL)])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Each device in turn. What has to be made of the host's own kernels is made before, by the test's other fixtures."""
    if request.param == "pretended":
        with pretended_device() as log:
            yield Place(PRETENDED, log)
    else:
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        yield Place(torch.device(request.param, 0), tolerance=1e-3)
        torch.backends.cuda.matmul.allow_tf32 = allowed

"""A GPU that this machine lacks, pretended: tensors that say they lie on it, with their values on the CPU.

Within `PretendedDevice` every operator goes by the rules of a real one, as torch's own FakeTensorMode has them: tensors of two
devices in one operator raise (but for a number of the host beside tensors of the device), and so does an index of the device into
a tensor of the host. Unlike fakes these have values: what depends on data - stop signs, rows that leave a batch, texts - runs as
it is, and what comes out can be compared. What makes the host wait for the device, or sends it something, is written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

PRETENDED = torch.device("cuda", 0)
_WAITING = {  # operators whose result, or its shape, the host has to learn from the device
    "_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "repeat_interleave", "isin",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_JOINING = {"cat", "stack"}  # take no number of the host
_OF_THE_DRIVER = {  # what torch.cuda asks of a driver
    "_lazy_init": lambda: None,
    "synchronize": lambda device=None: None,
    "get_rng_state": lambda device=None: torch.zeros(8, dtype=torch.uint8),
    "set_rng_state": lambda state, device=None: None,
    "get_device_name": lambda device=None: "pretended",
    "reset_peak_memory_stats": lambda device=None: None,
    "memory_allocated": lambda device=None: 0,
    "max_memory_allocated": lambda device=None: 0,
}
_TRANSFERS = {"_to_copy", "copy_"}


class OnDevice(Tensor):
    """A tensor on the pretended device; ``held`` is the one on the CPU.

    To torch's C++ it lies on ``meta``, as fakes do: a build without CUDA has nothing to say of that device, not even how to go
    backwards on it. Whoever asks in Python is told the pretended one.
    """

    held: Tensor
    device = property(lambda self: PRETENDED)
    is_cuda = property(lambda self: True)
    is_meta = is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        layout: dict[str, Any] = {"strides": values.stride(), "storage_offset": values.storage_offset()}
        return Tensor._make_wrapper_subclass(
            cls, values.size(), dtype=values.dtype, layout=values.layout, device=torch.device("meta"), **layout
        )

    def __init__(self, values: Tensor) -> None:
        self.held = values

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.held!r})"

    def tolist(self) -> Any:
        """torch's own refuses subclasses."""
        return self.cpu().tolist()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], meta: None, size: Any, stride: Any) -> OnDevice:
        return OnDevice(parts["held"])

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})[0]


class PretendedDevice(TorchDispatchMode):
    """See the module's docstring.

    Attributes:
        waits: Names of the operators that made the host wait for the device, in order.
        uploads: Names of those that sent something to it.
        names: Of all operators that ran on it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.uploads: list[str] = []
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):  # without gradients nobody has taken it apart before it came here
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out, name, kind = _run(func, args, kwargs)
        if kind != "host":
            self.names.append(name)
        if kind in ("wait", "upload"):
            (self.waits if kind == "wait" else self.uploads).append(name)
        return out

    def forget(self) -> None:
        """Begins the lists anew."""
        self.waits, self.uploads, self.names = [], [], []


@cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, str, str]:
    """What an operator gives, its name, and what it was to the device: ``host``, ``device``, ``wait`` or ``upload``."""
    name = func.name().removeprefix("aten::").split(".")[0]
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    asked = kwargs.get("device")
    to_device = bool(ours) if asked is None else torch.device(asked).type in (PRETENDED.type, "meta")
    if name == "copy_":
        to_device = isinstance(args[0], OnDevice)
    if not ours and not to_device:
        return func(*args, **kwargs), name, "host"
    kind = _kind(name, args, tensors, ours, to_device)
    if name == "_fused_sdp_choice":  # the fused ways of a GPU are not here; the plain one computes the same
        return 0, name, kind
    values = tree_map(lambda leaf: leaf.held if isinstance(leaf, OnDevice) else leaf, (args, kwargs))
    if asked is not None:
        values[1]["device"] = torch.device("cpu")
    if name == "_to_copy":
        values[1].pop("non_blocking", None)
    out = func(*values[0], **values[1])
    same = {id(tensor.held): tensor for tensor in ours}  # operators in place give back what they were given

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return same[id(leaf)] if id(leaf) in same else OnDevice(leaf) if to_device else leaf

    # A view of a tensor that was made outside of inference mode belongs there too, as its values do.
    outside = any(isinstance(leaf, Tensor) and not leaf.is_inference() for leaf in tree_flatten(out)[0])
    with torch.inference_mode(False) if outside and to_device else nullcontext():
        return tree_map(wrapped, out), name, kind


def _kind(name: str, args: Any, tensors: list[Tensor], ours: list[OnDevice], to_device: bool) -> str:
    """What an operator is to the device.

    Raises:
        RuntimeError: Tensors of two devices meet.
    """
    theirs = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    if name in _TRANSFERS:
        if theirs and to_device:
            return "upload"
        return "device" if to_device else "wait"
    if name in _INDEXING:
        return _kind_of_indexing(name, args)
    if ours and any(tensor.dim() or name in _JOINING for tensor in theirs):
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found at least two devices.")
    # A number of the host that is handed to a kernel as an argument is no transfer; what is made on the host is.
    return "wait" if name in _WAITING else "device"


def _kind_of_indexing(name: str, args: Any) -> str:
    """Indices of the host into a tensor of the device are sent; masks are counted, and that is waited for."""
    indices = [index for index in args[1] if isinstance(index, Tensor)]
    values = [args[2]] if name != "index" and len(args) > 2 and isinstance(args[2], Tensor) else []
    if not isinstance(args[0], OnDevice):
        raise RuntimeError(
            f"{name}: indices should be either on cpu or on the same device as the indexed tensor (cpu)."
        )
    if any(value.dim() and not isinstance(value, OnDevice) for value in values):
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found at least two devices.")
    if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
        return "wait"
    return "upload" if any(not isinstance(index, OnDevice) for index in indices) else "device"


@contextmanager
def pretended_device() -> Iterator[PretendedDevice]:
    """Everything within may use ``PRETENDED`` as a device."""
    lifts = torch._C._only_lift_cpu_tensors()
    # `torch.tensor(..., device=PRETENDED)` makes a tensor of the host and sends it, as it does under FakeTensorMode.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with ExitStack() as stack:
            for name, stand_in in _OF_THE_DRIVER.items():
                stack.enter_context(patch(f"torch.cuda.{name}", stand_in))
            yield stack.enter_context(PretendedDevice())
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)

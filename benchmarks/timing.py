"""Seconds, bytes and the machine's matrix-product rate."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

SQUARE = (2048, 2048, 2048)  # large enough for the full rate


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def start_counting(device: str = "cpu") -> int:
    """Forgets what the most memory was, and returns what this process (on CUDA: the allocator) holds now, in bytes."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes(device)


def peak_bytes(device: str = "cpu") -> int:
    """The most memory this process (on CUDA: the allocator) held since ``start_counting``; Linux only."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def gemm_rate(dtype: torch.dtype, clock: str, device: str, shape: tuple[int, int, int] = SQUARE) -> float:
    """Floating-point operations per second of a matrix product on random data, (rows, inner) times (inner, columns).

    The best of several, the machine's own limit at that moment.
    """
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    operations, times = 2 * rows * inner * columns, []
    for _ in range(max(3, int(5e10 / operations))):
        synchronize(device)
        start = CLOCKS[clock]()
        left @ right
        synchronize(device)
        times.append(CLOCKS[clock]() - start)
    return operations / min(times)


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()

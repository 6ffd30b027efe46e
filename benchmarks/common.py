"""What the benchmarks share: models of a named size, the machine's matrix-product rate, peak memory, tables."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

SQUARE = (2048, 2048, 2048)  # large enough for the full rate

SIZES = {  # layers, width, heads, vocabulary
    "tiny": (4, 256, 4, 768),
    "small": (12, 768, 12, 50260),  # GPT-2 small
    "medium": (24, 1024, 16, 50260),
}


def random_coconut(size: str, dtype: torch.dtype = torch.float32, num_latents: int = 6, device: str = "cpu") -> Any:
    """A GPT-2 COCONUT with random weights; its tokenizer knows only single bytes, which no benchmark depends on."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from latent_tts.backbones import Coconut

    layers, width, heads, vocabulary = SIZES[size]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=heads, bos_token_id=0, eos_token_id=0
    )
    model: Any = GPT2LMHeadModel(config)
    model = model.to(dtype=dtype, device=device).eval()
    return Coconut(model, byte_tokenizer(Coconut.special_tokens), num_latents=num_latents)


def byte_tokenizer(special_tokens: Sequence[str]) -> Any:
    """A tokenizer of single bytes and these tokens; the end of text is token 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i + 1 for i, char in enumerate(alphabet)} | {"<|endoftext|>": 0}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    fast.add_tokens(list(special_tokens))
    return fast


def block_flops(size: str) -> int:
    """Floating-point operations of the matrix products of one position in all blocks, attention scores left out."""
    layers, width, _, _ = SIZES[size]
    return 2 * layers * 12 * width * width


def vocabulary_flops(size: str) -> int:
    """Floating-point operations of one projection to the vocabulary."""
    _, width, _, vocabulary = SIZES[size]
    return 2 * width * vocabulary


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


class Worker:
    """One implementation in a process of its own, so that peaks of memory don't mix, which does one call when it is told.

    It is ready, warmed up, when the constructor returns: a call never runs beside another worker's warm-up.

    Args:
        module: Its ``main`` takes ``--job JSON`` and hands the work to ``serve``.
        job: What to do.
    """

    def __init__(self, module: str, job: dict[str, Any]) -> None:
        command = [sys.executable, "-m", module, "--job", json.dumps(job)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def call(self) -> dict[str, Any]:
        """What the worker measured of one call."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self.process.args))} failed")  # type: ignore[arg-type]
        return json.loads(line)

    def close(self) -> None:
        self.process.communicate()


def take_turns(module: str, jobs: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Measurements of every job, by name, one of each in every round, so that other load on the machine meets all alike.

    A job takes part in its first ``repeats`` rounds.
    """
    workers = {name: Worker(module, job) for name, job in jobs.items()}
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for turn in range(max(job["repeats"] for job in jobs.values())):
        for name, worker in workers.items():
            if turn < jobs[name]["repeats"]:
                measured[name].append(worker.call())
    for worker in workers.values():
        worker.close()
    return measured


def serve(run: Callable[[], Any], clock: str, device: str = "cpu", warm_up: bool = True) -> None:
    """A worker's side: warms up, then times a call per line of its input; memory is counted from here on."""
    before = start_counting(device)
    if warm_up:
        run()
    print("{}", flush=True)  # ready
    for _ in sys.stdin:
        synchronize(device)
        start = CLOCKS[clock]()
        run()
        synchronize(device)
        measured = {"seconds": CLOCKS[clock]() - start, "memory": peak_bytes(device) - before}
        print(json.dumps(measured), flush=True)


def serve_gemm(rows: int, width: int, dtype: torch.dtype, clock: str, device: str = "cpu") -> None:
    """A worker's side: the rate of matrix products, of large squares and of the blocks' own feed-forward shape."""
    shapes = {"square": SQUARE, "feed-forward": (rows, width, 4 * width)}
    print("{}", flush=True)  # ready
    for _ in sys.stdin:
        print(json.dumps({name: gemm_rate(dtype, clock, device, shape) for name, shape in shapes.items()}), flush=True)


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


def show(title: str, rows: Sequence[dict[str, Any]], out: str | None, **facts: Any) -> None:
    """Prints a table and, where a file is named, writes rows and facts to it as JSON."""
    columns = list(rows[0])
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    print(f"\n{title}")
    print("  ".join(column.rjust(width) for column, width in zip(columns, widths, strict=True)))
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    for key, value in facts.items():
        print(f"{key}: {value}")
    if out:
        Path(out).write_text(json.dumps({"title": title, "rows": list(rows), **facts}, indent=2) + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plot_curves(panels: dict[str, list[dict[str, Any]]], out: str) -> None:
    """Draws ms per rollout, ours and the reference's, a panel per quantity that was varied.

    Args:
        panels: By the name of the column that varies, the rows of its table.
        out: PNG file to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    for axes, (column, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for dtype in dict.fromkeys(row["dtype"] for row in rows):
            for name, style in (("ours", "o-"), ("reference", "s--")):
                points = [(row[column], row[f"{name} ms/rollout"]) for row in rows if row["dtype"] == dtype]
                points = [(x, y) for x, y in points if y is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), style, label=f"{name}, {dtype}")
        values = [row[column] for row in rows]
        if not isinstance(values[0], str):
            axes.set_xscale("log", base=2)
            axes.set_xticks(values, [str(value) for value in values])
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.set_xlabel(column)
        axes.set_ylabel("ms per rollout")
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=130)

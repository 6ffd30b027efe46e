"""What the benchmarks share: models of a named size, problems, options, tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SIZES = {  # layers, width, heads, vocabulary
    "tiny": (4, 256, 4, 768),
    "small": (12, 768, 12, 50260),  # GPT-2 small
    "medium": (24, 1024, 16, 50260),
}


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A benchmark's options, with those that all have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="device (default: %(default)s)")
    parser.add_argument("--out", help="JSON file to write the table to")
    return parser


def validation_problems(seed: int, count: int, templates: Sequence[int] | None = None) -> list[Any]:
    """Problems of the validation part of GSM-Symbolic, which neither training nor the evaluations draw from."""
    from datamodules.sources.gsm_symbolic import GSMSymbolic

    source = GSMSymbolic(seed, templates=templates, split="validation")
    return [source.problem(i) for i in range(count)]


def random_coconut(size: str, dtype: torch.dtype = torch.float32, num_latents: int = 6, device: str = "cpu") -> Any:
    """A GPT-2 COCONUT with random weights; its tokenizer knows only single bytes, which no benchmark depends on."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from latent_tts.backbones import Coconut

    layers, width, heads, vocabulary = SIZES[size]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=heads, bos_token_id=0, eos_token_id=0,
        activation_function="gelu_pytorch_tanh",  # as a folder's model is loaded
    )  # fmt: skip
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

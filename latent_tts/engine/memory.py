"""How many problems fit in memory at once, and what is done where that was too many.

    1. before   `BatchBudget` counts the bytes of one problem and its N rollouts, and divides what is free by them
    2. after    `FittingParts` cuts a piece of work that ran out of memory in two, and goes on with pieces that fit

Neither changes a result: what a rollout is depends on its seed, problem and number alone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from latent_tts.acceleration.token_choice import ROWS_AT_A_TIME
from latent_tts.backbones.base import LatentBackbone
from latent_tts.engine.engine import MOST_ROWS, RolloutEngine
from latent_tts.problems import Problem

R = TypeVar("R")

_USABLE = {"cuda": 0.8, "cpu": 0.5}  # share of the free memory; other programs want some of the main memory
_CHARACTERS_PER_TOKEN = 2.0  # of a question, guessed low: GPT-2's tokenizer takes four and more
_TEMPLATE_TOKENS = 32  # of the prompt around the question


@dataclass(frozen=True)
class BatchBudget:
    """The memory of a batch of problems with N rollouts each.

    Attributes:
        free: Bytes there are for a batch.
        per_prompt_token: Bytes of one prompt position: keys and values, kept once per problem, and activations.
        per_rollout: Bytes of one rollout beside its prompt.
        num_rollouts: N.
        most_problems: Never more than this.
    """

    free: int
    per_prompt_token: int
    per_rollout: int
    num_rollouts: int
    most_problems: int

    @classmethod
    def of(
        cls,
        engine: RolloutEngine,
        num_rollouts: int,
        free: int,
        reserved_rows: int = 0,
    ) -> BatchBudget:
        """The budget of an engine on the device where its backbone is.

        Args:
            free: Bytes that are free there; see `free_bytes`.
            reserved_rows: Rows that are in memory whatever the batch, such as the continuations of an annotation.
        """
        backbone = engine.backbone
        device, num_positions = backbone.device.type, backbone.num_latents + 1 + engine.max_answer_tokens
        per_rollout = rollout_bytes(backbone, num_positions)
        fixed = ROWS_AT_A_TIME * backbone.model.config.vocab_size * 8 + reserved_rows * per_rollout
        usable = int(free * _USABLE.get(device, 0.5))
        return cls(
            free=max(0, usable - fixed),
            per_prompt_token=position_bytes(backbone) + activation_bytes(backbone),
            per_rollout=per_rollout,
            num_rollouts=num_rollouts,
            most_problems=max(1, MOST_ROWS.get(device, MOST_ROWS["cpu"]) // num_rollouts),
        )

    def num_problems(self, longest: Problem) -> int:
        """How many problems fit of which none is longer than this one: at least 1."""
        tokens = len(longest.question) / _CHARACTERS_PER_TOKEN + _TEMPLATE_TOKENS
        each = tokens * self.per_prompt_token + self.num_rollouts * self.per_rollout
        return max(1, min(self.most_problems, int(self.free / each)))


def position_bytes(backbone: LatentBackbone) -> int:
    """Keys and values of one position, in all layers."""
    config = backbone.model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * backbone.dtype.itemsize


def activation_bytes(backbone: LatentBackbone) -> int:
    """What one position needs while it goes through a layer: 2 feed-forward widths of 4 D, 3 D to attend, and residuals."""
    return 16 * backbone.hidden_size * backbone.dtype.itemsize


def rollout_bytes(backbone: LatentBackbone, num_positions: int) -> int:
    """One rollout of at most ``num_positions`` positions.

    Its keys and values count twice, since those of the rows that stay are copied when others leave the batch; beside them are its
    latents, kept and returned, and float64 draws of noise.
    """
    latents = 3 * backbone.num_latents * backbone.hidden_size * backbone.dtype.itemsize
    return (
        2 * num_positions * position_bytes(backbone) + latents + activation_bytes(backbone) + 32 * backbone.hidden_size
    )


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on a device, or in the main memory."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return _available_memory()


def _available_memory() -> int:
    """Main memory: what the system has to give, or what is left to this control group where that is less."""
    system = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        system = int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else system
    try:
        most, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(system, max(0, int(most) - int(used)))
    except (OSError, ValueError):  # no such group, or one without a limit ("max")
        return system


class FittingParts:
    """Runs a piece of work in parts that fit in memory.

    Args:
        what: What the parts are counted in, for the warning: "problems".
        advice: What spares the attempt next time, for the warning.

    Attributes:
        most: Size of a part that has not failed yet; ``None`` while nothing has. It stays for the pieces to come.
    """

    def __init__(self, what: str, advice: str = "") -> None:
        self.what, self.advice = what, advice
        self.most: int | None = None

    def run(self, work: Callable[[int, int], R], size: int) -> list[R]:
        """The results of ``work(first, end)`` over 0 .. size, one for each part in order.

        Raises:
            DoesNotFitError: A part of 1 does not fit.
        """
        results: list[R] = []
        first = 0
        while first < size:
            end = size if self.most is None else min(size, first + self.most)
            if self._fits(work, first, end, results):
                first = end
            elif end - first == 1:
                raise DoesNotFitError(self.what)
            else:
                self._halve(end - first)
        return results

    def _fits(self, work: Callable[[int, int], R], first: int, end: int, results: list[R]) -> bool:
        """Whether memory was enough; where not, the error is gone on return, and with it all that its frames held."""
        try:
            results.append(work(first, end))
            return True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return False

    def _halve(self, size: int) -> None:
        if self.most is None:
            warnings.warn(
                f"{size} {self.what} at a time do not fit in memory: going on with smaller parts.{self.advice}",
                stacklevel=2,
            )
        self.most = size // 2


class DoesNotFitError(MemoryError):
    """The smallest part does not fit; the caller knows what can be made smaller still, or what to tell the user."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the main memory, has no room."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in text or "not enough memory" in text)

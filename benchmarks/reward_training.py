"""Problems per second in the training of a reward model, rollouts packed behind one prompt beside one by one, in one run.

    python -m benchmarks.reward_training                              GPT-2 small, prompt 80, 6 latents, N = 8
    python -m benchmarks.reward_training --size tiny --num-rollouts 1 4 8 16 64 --out reward_training.json

A step is forward, contrastive loss, backward, gradient clipping and AdamW. The straightforward implementation is the model's own
``packed=False``: every rollout a row with its own prompt. Both take turns, so that other load on the machine meets both alike; a
time is the median of its steps. ``--clock cpu`` counts processor seconds instead of wall-clock seconds, for a machine that others
use too (with one thread, since waiting threads count as busy).
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import SIZES, block_flops, gemm_rate, machine, random_coconut, show, synchronize
from latent_tts.losses import contrastive_loss
from latent_tts.reward import LatentRewardModel

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def make_batch(options: argparse.Namespace, num_rollouts: int) -> tuple[Tensor, ...]:
    """Prompt ids and mask, latents, their mask, and labels; prompts of one length, since padding is not the subject."""
    _, width, _, vocabulary = SIZES[options.size]
    generator = torch.Generator().manual_seed(0)
    shape = (options.problems, num_rollouts, options.num_latents)
    ids = torch.randint(vocabulary, (options.problems, options.prompt_length), generator=generator)
    latents, labels = torch.randn(*shape, width, generator=generator), torch.rand(shape, generator=generator)
    parts = (ids, torch.ones_like(ids, dtype=torch.bool), latents, torch.ones(shape, dtype=torch.bool), labels)
    return tuple(part.to(options.device) for part in parts)


def training_step(
    model: LatentRewardModel, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, ...], packed: bool, bf16: bool
) -> None:
    ids, prompt_mask, latents, mask, labels = batch
    optimizer.zero_grad()
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        scores = model(ids, prompt_mask, latents, mask, packed)
    contrastive_loss(scores, labels, mask).mean.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def alternate(model: LatentRewardModel, options: argparse.Namespace, num_rollouts: int) -> dict[bool, float]:
    """Median seconds of a packed (True) and an unpacked (False) step, after one warm-up of each."""
    clock, batch = CLOCKS[options.clock], make_batch(options, num_rollouts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(options.repeats + 1):
        for packed, spent in times.items():
            started = clock()
            training_step(model, optimizer, batch, packed, options.dtype == "bfloat16")
            synchronize(options.device)
            spent.append(clock() - started)
    return {packed: statistics.median(spent[1:]) for packed, spent in times.items()}


def measure(model: LatentRewardModel, options: argparse.Namespace, num_rollouts: int, rate: float) -> dict[str, Any]:
    seconds = alternate(model, options, num_rollouts)
    positions = options.problems * (options.prompt_length + num_rollouts * options.num_latents)
    operations = 3 * block_flops(options.size) * positions  # a backward pass is twice a forward pass
    return {
        "N": num_rollouts,
        "unpacked problems/s": options.problems / seconds[False],
        "packed problems/s": options.problems / seconds[True],
        "speed-up": seconds[False] / seconds[True],
        "share of GEMM rate": operations / seconds[True] / rate if options.clock == "wall" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--prompt-length", type=int, default=80)
    parser.add_argument("--num-latents", type=int, default=6)
    parser.add_argument("--num-rollouts", type=int, nargs="+", default=[8])
    parser.add_argument("--problems", type=int, default=8, help="problems in a step")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 is autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--out", help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = LatentRewardModel.from_backbone(random_coconut(options.size, device=options.device)).train()
    rate = gemm_rate(getattr(torch, options.dtype), options.device)
    rows = [measure(model, options, num_rollouts, rate) for num_rollouts in options.num_rollouts]
    title = f"Reward-model training, {options.size}, prompt {options.prompt_length}, {options.num_latents} latents"
    facts = {"GEMM rate, GFLOP/s": rate / 1e9, "clock": options.clock, "problems a step": options.problems}
    show(title, rows, options.out, **facts, **machine(options.device))


if __name__ == "__main__":
    main()

"""Problems per second and peak memory in the training of a reward model, rollouts packed behind one prompt beside one by one.

    python -m benchmarks.reward_training                              GPT-2 small, prompt 80, 6 latents, N = 8
    python -m benchmarks.reward_training --size tiny --prompt-length 20 80 320 --num-rollouts 1 4 16 64 256 --out FILE

A step is forward, contrastive loss, backward, gradient clipping and AdamW. The straightforward implementation is the model's own
``packed=False``: every rollout a row with its own prompt. Both take turns in one process, so that other load on the machine meets
both alike; a time is the median of its steps. ``--clock cpu`` counts processor seconds instead of wall-clock time, for a machine
that others use too (with one thread, since waiting threads count as busy). Memory is that of one more step, in a process of its
own, beyond weights, gradients and optimizer state.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    CLOCKS,
    SIZES,
    block_flops,
    gemm_rate,
    machine,
    peak_bytes,
    random_coconut,
    show,
    start_counting,
    synchronize,
)
from latent_tts.reward import LatentRewardModel
from latent_tts.reward.losses import contrastive_loss

Job = dict[str, Any]  # the options, with one size, prompt length and N


def make_batch(job: Job, problems: int, num_rollouts: int) -> tuple[Tensor, ...]:
    """Prompt ids and mask, latents, their mask, and labels; prompts of one length, since padding is not the subject."""
    _, width, _, vocabulary = SIZES[job["size"]]
    generator = torch.Generator().manual_seed(0)
    shape = (problems, num_rollouts, job["num_latents"])
    ids = torch.randint(vocabulary, (problems, job["prompt_length"]), generator=generator)
    latents, labels = torch.randn(*shape, width, generator=generator), torch.rand(shape, generator=generator)
    parts = (ids, torch.ones_like(ids, dtype=torch.bool), latents, torch.ones(shape, dtype=torch.bool), labels)
    return tuple(part.to(job["device"]) for part in parts)


def training_step(
    model: LatentRewardModel, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, ...], packed: bool, bf16: bool
) -> None:
    ids, prompt_mask, latents, mask, labels = batch
    optimizer.zero_grad()
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        scores = model(ids, prompt_mask, latents, mask, packed)
    if scores.shape[1] > 1:
        loss = contrastive_loss(scores, labels, mask).mean
    else:
        loss = scores.square().mean()  # one rollout has nothing to be compared with
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def make_model(job: Job) -> tuple[LatentRewardModel, torch.optim.Optimizer]:
    model = LatentRewardModel.from_backbone(random_coconut(job["size"], device=job["device"])).train()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)


def alternate(job: Job, ways: list[bool]) -> dict[bool, float]:
    """Median seconds of packed (True) and unpacked (False) steps that take turns, after one warm-up of each."""
    model, optimizer = make_model(job)
    clock, batch = CLOCKS[job["clock"]], make_batch(job, job["problems"], job["num_rollouts"])
    times: dict[bool, list[float]] = {packed: [] for packed in ways}
    for _ in range(job["repeats"] + 1):
        for packed, spent in times.items():
            started = clock()
            training_step(model, optimizer, batch, packed, job["dtype"] == "bfloat16")
            synchronize(job["device"])
            spent.append(clock() - started)
    return {packed: statistics.median(spent[1:]) for packed, spent in times.items()}


def step_memory(job: Job) -> int:
    """Bytes of one step beyond what stays: weights, gradients and optimizer state, in place after a step on little."""
    model, optimizer = make_model(job)
    bf16, device = job["dtype"] == "bfloat16", job["device"]
    training_step(model, optimizer, make_batch(job, 1, 1), job["packed"], bf16)
    batch = make_batch(job, job["problems"], job["num_rollouts"])
    before = start_counting(device)
    training_step(model, optimizer, batch, job["packed"], bf16)
    return peak_bytes(device) - before


def step_memory_in_fresh_process(job: Job) -> int:
    """`step_memory` where no other step has left anything behind."""
    command = [sys.executable, "-m", "benchmarks.reward_training", "--job", json.dumps(job)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def measure(job: Job, rate: float) -> dict[str, Any]:
    """One row of the table."""
    ways = [True, False] if job["problems"] * job["num_rollouts"] <= job["reference_limit"] else [True]
    seconds = alternate(job, ways)
    mib: dict[bool, float | None] = dict.fromkeys([True, False])
    if job["memory"]:
        mib |= {packed: step_memory_in_fresh_process(job | {"packed": packed}) / 2**20 for packed in ways}
    problems, both = job["problems"], False in ways
    positions = problems * (job["prompt_length"] + job["num_rollouts"] * job["num_latents"])
    operations = 3 * block_flops(job["size"]) * positions  # a backward pass is twice a forward pass
    return {
        "size": job["size"],
        "prompt": job["prompt_length"],
        "N": job["num_rollouts"],
        "problems a step": problems,
        "unpacked problems/s": problems / seconds[False] if both else None,
        "packed problems/s": problems / seconds[True],
        "times faster": seconds[False] / seconds[True] if both else None,
        "share of GEMM rate": operations / seconds[True] / rate,
        "unpacked MiB": mib[False],
        "packed MiB": mib[True],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["small"])
    parser.add_argument("--prompt-length", type=int, nargs="+", default=[80])
    parser.add_argument("--num-latents", type=int, default=6)
    parser.add_argument("--num-rollouts", type=int, nargs="+", default=[8])
    parser.add_argument("--rollouts", type=int, default=64, help="rollouts in a step, of as many problems as N leaves")
    parser.add_argument(
        "--reference-limit", type=int, default=64, help="most rollouts in a step that the reference runs at"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 is autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory as well")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.job:
        print(step_memory(json.loads(options.job)))
        return
    rate, rows = gemm_rate(getattr(torch, options.dtype), options.clock, options.device), []
    for size, length, n in product(options.size, options.prompt_length, options.num_rollouts):
        job = {"size": size, "prompt_length": length, "num_rollouts": n, "problems": max(1, options.rollouts // n)}
        rows.append(measure(vars(options) | job, rate))
    title = f"Reward-model training, {options.dtype}, {options.num_latents} latents"
    show(
        title,
        rows,
        options.out,
        **{"GEMM rate, GFLOP/s": rate / 1e9, "clock": options.clock},
        **machine(options.device),
    )


if __name__ == "__main__":
    main()

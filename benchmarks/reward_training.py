"""Problems per second and peak memory in the training of a reward model, rollouts packed behind one prompt beside one by one.

    python -m benchmarks.reward_training                              GPT-2 small, prompt 80, 6 latents, N = 8
    python -m benchmarks.reward_training --size tiny --prompt-length 20 80 320 --num-rollouts 1 4 16 64 256 --out FILE

A step is forward, contrastive loss, backward, gradient clipping and AdamW. The straightforward implementation is the model's own
``packed=False``: every rollout a row with its own prompt. Both run in processes of their own and take turns; a time is the median
of its steps. ``--clock cpu`` counts processor seconds instead of wall-clock time, for a machine that others use too (with one
thread, since waiting threads count as busy). Memory is that of a step beyond weights, gradients and optimizer state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import SIZES, block_flops, random_coconut
from benchmarks.comparison import Comparison, Job, comparison_arguments
from latent_tts.reward import LatentRewardModel
from latent_tts.reward.losses import contrastive_loss


def num_problems(job: Job) -> int:
    """Problems of a step."""
    return max(1, job["rollouts"] // job["num_rollouts"])


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


def make(job: Job) -> Callable[[], Any]:
    """Packed or unpacked steps, after one on little that puts gradients and optimizer state in place."""
    model = LatentRewardModel.from_backbone(random_coconut(job["size"], device=job["device"])).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    packed, bf16 = job["which"] == "ours", job["dtype"] == "bfloat16"
    training_step(model, optimizer, make_batch(job, 1, 1), packed, bf16)
    batch = make_batch(job, num_problems(job), job["num_rollouts"])
    return lambda: training_step(model, optimizer, batch, packed, bf16)


def num_positions(job: Job) -> int:
    """Positions of a packed step."""
    return num_problems(job) * (job["prompt_length"] + job["num_rollouts"] * job["num_latents"])


COMPARISON = Comparison(
    module="benchmarks.reward_training",
    unit="problem",
    columns={"size": "size", "prompt_length": "prompt", "num_rollouts": "N", "dtype": "dtype"},
    make=make,
    units=num_problems,
    useful_flops=lambda job: 3 * block_flops(job["size"]) * num_positions(job),  # backward is twice forward
    gemm_rows=num_positions,
    reference_rounds=lambda job: (
        job["repeats"] if num_problems(job) * job["num_rollouts"] <= job["reference_limit"] else 0
    ),
)


def main() -> None:
    parser = comparison_arguments(__doc__, num_rollouts=8)
    add = parser.add_argument
    add("--rollouts", type=int, default=64, help="rollouts in a step, of as many problems as N leaves")
    add("--reference-limit", type=int, default=64, help="most rollouts in a step that the reference runs at")
    COMPARISON.main(parser, "Reward-model training, {num_latents} latents, {rollouts} rollouts a step")


if __name__ == "__main__":
    main()

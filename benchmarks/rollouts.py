"""Rollouts per second and peak memory, ours beside a straightforward implementation, in one run.

    python -m benchmarks.rollouts                          GPT-2 small, prompt 80, 6 latents, 8 answer tokens, N = 64
    python -m benchmarks.rollouts --dtype float32 bfloat16 --num-rollouts 1 4 16 64 256 1024 --out rollouts.json
    python -m benchmarks.rollouts --curves rollouts.png    cost per rollout against N, problems, prompt length, model size

The straightforward implementation is what the public code of the field does: the prompt copied N times and encoded in every
copy, keys and values concatenated at every step, logits of the whole vocabulary at every position, the whole batch kept until
its last row ends. It is given the same model, torch's fused activations and our weight layouts included, but not our kernels.

Every flag that takes several values is varied, one row each. Implementations run in processes of their own and take turns, as
does the measurement of the machine's matrix-product rate; figures are medians over the rounds. Memory is the peak beyond the
weights. ``--clock cpu --threads 1`` counts processor seconds, for a machine that others use too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import block_flops, plot_curves, random_coconut, vocabulary_flops
from benchmarks.comparison import Comparison, Job, comparison_arguments

CURVES: dict[str, dict[str, list[Any]]] = {  # what is varied, and what else is set: one panel each
    "N": {"num_rollouts": [1, 4, 16, 64, 256, 1024]},
    "problems": {"problems": [1, 4, 16], "num_rollouts": [16]},
    "prompt": {"prompt_length": [20, 80, 320], "num_rollouts": [16]},
    "size": {"size": ["tiny", "small", "medium"], "num_rollouts": [16]},
}
COLUMNS = {"size": "size", "prompt_length": "prompt", "problems": "problems", "num_rollouts": "N", "dtype": "dtype"}


def straightforward(
    backbone: Any, prompts: list[list[int]], num_rollouts: int, num_tokens: int, sigma: float
) -> torch.Tensor:
    """N copies of everything, as in the public code; prompts of one length, since padding is not its subject."""
    model = backbone.model
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([prompt for prompt in prompts for _ in range(num_rollouts)], device=backbone.device)
    out = model(input_ids=ids, output_hidden_states=True, use_cache=True)
    for _ in range(backbone.num_latents):
        latent = out.hidden_states[-1][:, -1:]
        latent = latent + sigma * torch.randn_like(latent)
        out = model(
            inputs_embeds=latent, past_key_values=out.past_key_values, output_hidden_states=True, use_cache=True
        )
    token = torch.full((len(ids), 1), backbone.end_of_thought_id, device=backbone.device)
    answers = []
    for _ in range(num_tokens):
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        token = out.logits[:, -1:].argmax(dim=-1)
        answers.append(token)
    return torch.cat(answers, dim=1)


def make(job: Job) -> Callable[[], Any]:
    """One implementation at one setting."""
    from latent_tts.engine.engine import RolloutEngine
    from latent_tts.sampling import AdditiveGaussianNoise, MonteCarloDropout

    torch.set_grad_enabled(False)
    backbone = random_coconut(job["size"], getattr(torch, job["dtype"]), job["num_latents"], job["device"]).freeze()
    backbone.eos_token_id = -1  # random weights must not end an answer early: every rollout decodes all its tokens
    shape, n = (job["problems"], job["prompt_length"]), job["num_rollouts"]
    prompts = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0)).tolist()
    if job["which"] == "reference":
        return lambda: straightforward(backbone, prompts, n, job["answer_tokens"], 0.5)
    sampler = AdditiveGaussianNoise(0.5) if job["sampler"] == "agn" else MonteCarloDropout(0.1)
    engine = RolloutEngine(backbone, sampler, max_answer_tokens=job["answer_tokens"])
    engine.backbone.encode_prompts = lambda questions: prompts  # type: ignore[method-assign]
    return lambda: engine.rollout([str(i) for i in range(job["problems"])], n)


def useful_flops(job: dict[str, Any]) -> int:
    """Operations that N rollouts of P problems need: prompts once, thoughts and answers per rollout, logits per token."""
    per_rollout = job["num_latents"] + job["answer_tokens"]  # the last token is chosen, not fed; end-of-thought is fed
    positions = job["problems"] * (job["prompt_length"] + job["num_rollouts"] * per_rollout)
    logits = job["problems"] * job["num_rollouts"] * job["answer_tokens"]
    return positions * block_flops(job["size"]) + logits * vocabulary_flops(job["size"])


def num_rows(job: Job) -> int:
    return job["problems"] * job["num_rollouts"]


COMPARISON = Comparison(
    module="benchmarks.rollouts",
    unit="rollout",
    columns=COLUMNS,
    make=make,
    units=num_rows,
    useful_flops=useful_flops,
    gemm_rows=num_rows,
    reference_rounds=lambda job: job["repeats"] if num_rows(job) <= job["reference_limit"] else 0,
)


def main() -> None:
    parser = comparison_arguments(__doc__, num_rollouts=64)
    add = parser.add_argument
    add("--problems", type=int, nargs="+", default=[1], help="problems in a batch (default: %(default)s)")
    add("--answer-tokens", type=int, default=8, help="tokens of an answer (default: %(default)s)")
    add("--sampler", choices=["agn", "dropout"], default="agn", help="sampler (default: %(default)s)")
    add("--reference-limit", type=int, default=256, help="most rows the reference runs with (default: %(default)s)")
    add("--curves", help="PNG file: measures the four curves instead, and draws them")
    args = COMPARISON.parse(parser)
    if args is None:
        return
    values, rows = COMPARISON.values(args), list[dict[str, Any]]()
    panels = {
        column: COMPARISON.measure(args, values | varied, rows) for column, varied in CURVES.items() if args.curves
    }
    title = f"Rollouts, {args.sampler}, {args.num_latents} latents, {args.answer_tokens} tokens"
    out = args.out or (str(Path(args.curves).with_suffix(".json")) if args.curves else None)
    COMPARISON.show(title, args, rows or COMPARISON.measure(args, values), out)
    if args.curves:
        plot_curves(panels, args.curves)


if __name__ == "__main__":
    main()

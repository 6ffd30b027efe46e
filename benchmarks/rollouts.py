"""Rollouts per second and peak memory, ours beside a straightforward implementation, in one run.

    python -m benchmarks.rollouts                          GPT-2 small, prompt 80, 6 latents, 8 answer tokens, N = 64
    python -m benchmarks.rollouts --num-rollouts 1 4 16 64 256 1024 --dtype bfloat16 --out rollouts.json

The straightforward implementation is what the public code of the field does: the prompt copied N times and encoded in
every copy, keys and values concatenated at every step, logits of the whole vocabulary at every position, the whole batch
kept until its last row ends. Each measurement runs in a process of its own; memory is counted beyond the weights.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from benchmarks.common import (
    SIZES,
    block_flops,
    gemm_rate,
    in_fresh_process,
    machine,
    median_seconds,
    peak_bytes,
    random_coconut,
    resident_bytes,
    show,
    vocabulary_flops,
)


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


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One implementation at one setting: seconds per call and peak memory beyond the weights."""
    from latent_tts.rollout import RolloutEngine
    from latent_tts.sampling import AdditiveGaussianNoise, MonteCarloDropout

    torch.set_grad_enabled(False)
    device = job["device"]
    backbone = random_coconut(job["size"], getattr(torch, job["dtype"]), job["num_latents"], device)
    backbone.eos_token_id = -1  # random weights must not end an answer early: every rollout decodes all its tokens
    generator = torch.Generator().manual_seed(0)
    shape = (job["problems"], job["prompt_length"])
    prompts = torch.randint(1, 256, shape, generator=generator).tolist()
    sampler = AdditiveGaussianNoise(0.5) if job["sampler"] == "agn" else MonteCarloDropout(0.1)
    engine = RolloutEngine(backbone, sampler, max_answer_tokens=job["answer_tokens"])
    engine.backbone.encode_prompts = lambda questions: prompts  # type: ignore[method-assign]
    questions = [str(i) for i in range(job["problems"])]
    if job["which"] == "ours":
        run = lambda: engine.rollout(questions, job["num_rollouts"])  # noqa: E731
    else:
        run = lambda: straightforward(backbone, prompts, job["num_rollouts"], job["answer_tokens"], 0.5)  # noqa: E731
    before = torch.cuda.memory_allocated() if device.startswith("cuda") else resident_bytes()
    seconds = median_seconds(run, job["repeats"], device)
    return {"seconds": seconds, "memory": peak_bytes(device) - before}


def useful_flops(job: dict[str, Any]) -> int:
    """Operations that N rollouts of P problems need: prompts once, thoughts and answers per rollout, logits per token."""
    per_rollout = job["num_latents"] + job["answer_tokens"]  # the last token is chosen, not fed; end-of-thought is fed
    positions = job["problems"] * (job["prompt_length"] + job["num_rollouts"] * per_rollout)
    logits = job["problems"] * job["num_rollouts"] * job["answer_tokens"]
    return positions * block_flops(job["size"]) + logits * vocabulary_flops(job["size"])


def compare(args: argparse.Namespace, num_rollouts: int) -> dict[str, Any]:
    """One row of the table."""
    job = vars(args) | {"num_rollouts": num_rollouts}
    ours = in_fresh_process("benchmarks.rollouts", job | {"which": "ours"})
    rate = gemm_rate(getattr(torch, args.dtype), args.device)
    row = {
        "N": num_rollouts,
        "ours rollouts/s": args.problems * num_rollouts / ours["seconds"],
        "ours ms/rollout": 1e3 * ours["seconds"] / (args.problems * num_rollouts),
        "ours MiB": ours["memory"] / 2**20,
        "GEMM share": useful_flops(job) / ours["seconds"] / rate,
    }
    if num_rollouts * args.problems <= args.reference_limit:
        reference = in_fresh_process("benchmarks.rollouts", job | {"which": "reference"})
        row |= {
            "reference rollouts/s": args.problems * num_rollouts / reference["seconds"],
            "reference MiB": reference["memory"] / 2**20,
            "times faster": reference["seconds"] / ours["seconds"],
            "memory share": ours["memory"] / reference["memory"],
        }
    else:
        row |= dict.fromkeys(["reference rollouts/s", "reference MiB", "times faster", "memory share"])
    return row | {"GFLOP/s of GEMM": rate / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="model size (default: %(default)s, GPT-2 small)")
    parser.add_argument("--num-rollouts", type=int, nargs="+", default=[64], help="values of N (default: %(default)s)")
    parser.add_argument("--problems", type=int, default=1, help="problems in a batch (default: %(default)s)")
    parser.add_argument("--prompt-length", type=int, default=80, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument("--num-latents", type=int, default=6, help="latent thoughts (default: %(default)s)")
    parser.add_argument("--answer-tokens", type=int, default=8, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--sampler", choices=["agn", "dropout"], default="agn", help="sampler (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="type (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="device (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed calls, of which the median counts (default: %(default)s)"
    )
    parser.add_argument(
        "--reference-limit", type=int, default=256, help="largest N the reference runs at (default: %(default)s)"
    )
    parser.add_argument("--out", help="JSON file to write the table to")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(measure(json.loads(args.job))))
        return
    rows = [compare(args, n) for n in args.num_rollouts]
    title = f"{args.size}, {args.dtype}, prompt {args.prompt_length}, {args.num_latents} latents, {args.answer_tokens} tokens"
    show(title, rows, args.out, machine=machine(args.device))


if __name__ == "__main__":
    main()

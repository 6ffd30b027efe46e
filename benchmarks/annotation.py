"""Annotated problems per second, ours beside a straightforward implementation, in one run.

    python -m benchmarks.annotation                        GPT-2 small, prompt 80, 6 latents, 8 answer tokens, N = 8, M = 16
    python -m benchmarks.annotation --num-continuations 1 4 16 64 --size tiny --out annotation.json

The straightforward implementation goes through the prefixes one by one: prompt and thoughts so far are encoded M times, the M
rows think on with keys and values concatenated at every step and logits of the whole vocabulary at every position, and all
decode until the last ends. Both value every prefix but the last, which has its rollout's own answer. Each measurement runs in
a process of its own; memory is counted beyond the weights.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch import Tensor

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


def straightforward(backbone: Any, prompts: Tensor, job: dict[str, Any]) -> None:
    """N rollouts of each prompt (P, L), then M continuations of every prefix, each from the start."""
    model, embed = backbone.model, backbone.model.get_input_embeddings()
    model.set_attn_implementation("sdpa")
    for prompt in prompts:
        for _ in range(job["num_rollouts"]):
            thoughts = continue_from(backbone, embed(prompt).unsqueeze(0), 0, job)
            for step in range(1, job["num_latents"]):
                prefix = torch.cat([embed(prompt), thoughts[0, :step]])
                continue_from(backbone, prefix.expand(job["num_continuations"], -1, -1), step, job)


def continue_from(backbone: Any, inputs: Tensor, step: int, job: dict[str, Any]) -> Tensor:
    """Encodes the inputs (R, L, D), thinks to the end, decodes an answer; returns the new thoughts (R, T - step, D)."""
    model = backbone.model
    out = model(inputs_embeds=inputs, output_hidden_states=True, use_cache=True)
    thoughts = []
    for _ in range(job["num_latents"] - step):
        hidden = out.hidden_states[-1][:, -1:]
        thoughts.append(hidden + job["sigma"] * torch.randn_like(hidden))
        out = model(
            inputs_embeds=thoughts[-1], past_key_values=out.past_key_values, output_hidden_states=True, use_cache=True
        )
    token = torch.full((len(inputs), 1), backbone.end_of_thought_id, device=inputs.device)
    for _ in range(job["answer_tokens"]):
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        token = out.logits[:, -1:].argmax(dim=-1)
    return torch.cat(thoughts, dim=1)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One implementation at one setting: seconds per call and peak memory beyond the weights."""
    from latent_tts.rollout import RolloutEngine
    from latent_tts.sampling import AdditiveGaussianNoise
    from latent_tts.values import annotate

    torch.set_grad_enabled(False)
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    device = job["device"]
    backbone = random_coconut(job["size"], getattr(torch, job["dtype"]), job["num_latents"], device)
    backbone.eos_token_id = -1  # random weights must not end an answer early: every row decodes all its tokens
    shape = (job["problems"], job["prompt_length"])
    prompts = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0))
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(job["sigma"]), max_answer_tokens=job["answer_tokens"])
    engine.backbone.encode_prompts = lambda questions: prompts.tolist()  # type: ignore[method-assign]
    questions, golds = [str(i) for i in range(job["problems"])], [0.0] * job["problems"]

    def ours() -> None:
        annotate(engine, questions, golds, job["num_rollouts"], job["num_continuations"], max_rows=job["max_rows"])

    def reference() -> None:
        straightforward(backbone, prompts.to(device), job)

    before = torch.cuda.memory_allocated() if device.startswith("cuda") else resident_bytes()
    seconds = median_seconds(ours if job["which"] == "ours" else reference, job["repeats"], device)
    return {"seconds": seconds, "memory": peak_bytes(device) - before}


def useful_flops(job: dict[str, Any]) -> int:
    """Operations that an annotation needs: prompts once, rollouts once, of a continuation what comes after its prefix."""
    thoughts, tokens, rollouts = job["num_latents"], job["answer_tokens"], job["num_rollouts"]
    continued = sum(thoughts - step + tokens for step in range(1, thoughts)) * job["num_continuations"]
    positions = job["prompt_length"] + rollouts * (thoughts + tokens + continued)
    logits = rollouts * tokens * (1 + (thoughts - 1) * job["num_continuations"])
    return job["problems"] * (positions * block_flops(job["size"]) + logits * vocabulary_flops(job["size"]))


def compare(args: argparse.Namespace, num_continuations: int) -> dict[str, Any]:
    """One row of the table."""
    job = vars(args) | {"num_continuations": num_continuations}
    if args.threads:
        torch.set_num_threads(args.threads)
    ours = in_fresh_process("benchmarks.annotation", job | {"which": "ours"})
    rate = gemm_rate(getattr(torch, args.dtype), args.device)
    row = {
        "N": args.num_rollouts,
        "M": num_continuations,
        "ours problems/s": args.problems / ours["seconds"],
        "ours MiB": ours["memory"] / 2**20,
        "GEMM share": useful_flops(job) / ours["seconds"] / rate,
    }
    names = ["reference problems/s", "reference MiB", "times faster"]
    if args.no_reference:
        return row | dict.fromkeys(names) | {"GFLOP/s of GEMM": rate / 1e9}
    repeats = {"repeats": args.reference_repeats, "which": "reference"}
    reference = in_fresh_process("benchmarks.annotation", job | repeats)
    figures = (
        args.problems / reference["seconds"],
        reference["memory"] / 2**20,
        reference["seconds"] / ours["seconds"],
    )
    return row | dict(zip(names, figures, strict=True)) | {"GFLOP/s of GEMM": rate / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=SIZES, default="small", help="model size (default: %(default)s, GPT-2 small)")
    add("--num-rollouts", type=int, default=8, help="N (default: %(default)s)")
    add("--num-continuations", type=int, nargs="+", default=[16], help="values of M (default: %(default)s)")
    add("--problems", type=int, default=1, help="problems in a batch (default: %(default)s)")
    add("--prompt-length", type=int, default=80, help="tokens of a prompt (default: %(default)s)")
    add("--num-latents", type=int, default=6, help="latent thoughts (default: %(default)s)")
    add("--answer-tokens", type=int, default=8, help="tokens of an answer (default: %(default)s)")
    add("--sigma", type=float, default=0.5, help="standard deviation of the noise (default: %(default)s)")
    add("--max-rows", type=int, default=512, help="our continuations in memory at once (default: %(default)s)")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="type (default: %(default)s)")
    add("--device", default="cpu", help="device (default: %(default)s)")
    add("--threads", type=int, default=0, help="CPU threads (default: torch's own)")
    add("--repeats", type=int, default=3, help="timed calls of ours, of which the median counts (default: %(default)s)")
    add("--reference-repeats", type=int, default=1, help="timed calls of the reference (default: %(default)s)")
    add("--no-reference", action="store_true", help="measure ours only")
    add("--out", help="JSON file to write the table to")
    add("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(measure(json.loads(args.job))))
        return
    rows = [compare(args, count) for count in args.num_continuations]
    title = f"{args.size}, {args.dtype}, prompt {args.prompt_length}, {args.num_latents} latents, {args.answer_tokens} tokens"
    show(title, rows, args.out, machine=machine(args.device))


if __name__ == "__main__":
    main()

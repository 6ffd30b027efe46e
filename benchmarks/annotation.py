"""Annotated problems per second, ours beside a straightforward implementation, in one run.

    python -m benchmarks.annotation                        GPT-2 small, prompt 80, 6 latents, 8 answer tokens, N = 8, M = 16
    python -m benchmarks.annotation --num-continuations 1 4 16 64 --size tiny --out annotation.json
    python -m benchmarks.annotation --reference-rollouts 1      the reference's time from 1 of the N rollouts, times N

The straightforward implementation goes through the prefixes one by one: prompt and thoughts so far are encoded M times, the M
rows think on with keys and values concatenated at every step and logits of the whole vocabulary at every position, and all
decode until the last ends. Both value every prefix but the last, which has its rollout's own answer.

Every flag that takes several values is varied, one row each. Implementations run in processes of their own and take turns, as
does the measurement of the machine's matrix-product rate; figures are medians over the rounds. Memory is the peak beyond the
weights. ``--clock cpu --threads 1`` counts processor seconds, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    CLOCKS,
    SIZES,
    block_flops,
    machine,
    random_coconut,
    serve,
    serve_gemm,
    show,
    take_turns,
    vocabulary_flops,
)

VARIED = ["size", "prompt_length", "problems", "num_rollouts", "num_continuations", "dtype"]


def straightforward(backbone: Any, prompts: Tensor, job: dict[str, Any]) -> None:
    """N rollouts of each prompt (P, L), then M continuations of every prefix, each from the start."""
    model, embed = backbone.model, backbone.model.get_input_embeddings()
    model.set_attn_implementation("sdpa")
    for prompt in prompts:
        for _ in range(job["reference_rollouts"] or job["num_rollouts"]):
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


def work(job: dict[str, Any]) -> None:
    """A worker's side: one implementation at one setting, or the matrix products."""
    from latent_tts.acceleration.kernels.library import SWITCH
    from latent_tts.annotation.prefix_values import annotate
    from latent_tts.engine.engine import RolloutEngine
    from latent_tts.sampling import AdditiveGaussianNoise

    if job["which"] == "reference":
        os.environ[SWITCH] = "off"
    torch.set_grad_enabled(False)
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    device, dtype, n, m = job["device"], getattr(torch, job["dtype"]), job["num_rollouts"], job["num_continuations"]
    if job["which"] == "GEMM":
        serve_gemm(min(job["problems"] * n * m, job["max_rows"]), SIZES[job["size"]][1], dtype, job["clock"], device)
        return
    backbone = random_coconut(job["size"], dtype, job["num_latents"], device).freeze()
    backbone.eos_token_id = -1  # random weights must not end an answer early: every row decodes all its tokens
    shape = (job["problems"], job["prompt_length"])
    prompts = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0))
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(job["sigma"]), max_answer_tokens=job["answer_tokens"])
    engine.backbone.encode_prompts = lambda questions: prompts.tolist()  # type: ignore[method-assign]
    questions, golds = [str(i) for i in range(job["problems"])], [0.0] * job["problems"]
    if job["which"] == "ours":
        serve(lambda: annotate(engine, questions, golds, n, m, max_rows=job["max_rows"]), job["clock"], device)
    else:
        serve(lambda: straightforward(backbone, prompts.to(device), job), job["clock"], device, warm_up=False)


def useful_flops(job: dict[str, Any]) -> int:
    """Operations that an annotation needs: prompts once, rollouts once, of a continuation what comes after its prefix."""
    thoughts, tokens, rollouts = job["num_latents"], job["answer_tokens"], job["num_rollouts"]
    continued = sum(thoughts - step + tokens for step in range(1, thoughts)) * job["num_continuations"]
    positions = job["prompt_length"] + rollouts * (thoughts + tokens + continued)
    logits = rollouts * tokens * (1 + (thoughts - 1) * job["num_continuations"])
    return job["problems"] * (positions * block_flops(job["size"]) + logits * vocabulary_flops(job["size"]))


def compare(args: argparse.Namespace, setting: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    job = vars(args) | setting
    jobs = {name: job | {"which": name} for name in ("ours", "GEMM")}
    if args.reference_repeats:
        jobs["reference"] = job | {"which": "reference", "repeats": args.reference_repeats}
    measured = take_turns("benchmarks.annotation", jobs)
    seconds = {name: statistics.median(turn["seconds"] for turn in measured[name]) for name in jobs if name != "GEMM"}
    rates = {name: statistics.median(turn[name] for turn in measured["GEMM"]) for name in ("square", "feed-forward")}
    row = {"dtype": job["dtype"], "size": job["size"], "prompt": job["prompt_length"], "problems": job["problems"]}
    row |= {
        "N": job["num_rollouts"],
        "M": job["num_continuations"],
        "ours problems/s": job["problems"] / seconds["ours"],
    }
    row |= {"ours ms/label": 1e3 * seconds["ours"] / (job["problems"] * job["num_rollouts"] * job["num_latents"])}
    row |= {"ours MiB": measured["ours"][-1]["memory"] / 2**20}
    row |= {"share of GEMM": useful_flops(job) / seconds["ours"] / rates["square"]}
    row |= {"at own shape": useful_flops(job) / seconds["ours"] / rates["feed-forward"]}
    row |= dict.fromkeys(["reference problems/s", "reference MiB", "times faster"])
    if "reference" in seconds:
        part = (args.reference_rollouts or job["num_rollouts"]) / job["num_rollouts"]
        row |= {"reference problems/s": part * job["problems"] / seconds["reference"]}
        row |= {"reference MiB": measured["reference"][-1]["memory"] / 2**20}
        row |= {"times faster": seconds["reference"] / part / seconds["ours"]}
    return row | {f"{name} GFLOP/s": rate / 1e9 for name, rate in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=SIZES, nargs="+", default=["small"], help="model sizes (default: %(default)s, GPT-2 small)")
    add("--num-rollouts", type=int, nargs="+", default=[8], help="values of N (default: %(default)s)")
    add("--num-continuations", type=int, nargs="+", default=[16], help="values of M (default: %(default)s)")
    add("--problems", type=int, nargs="+", default=[1], help="problems in a batch (default: %(default)s)")
    add("--prompt-length", type=int, nargs="+", default=[80], help="tokens of a prompt (default: %(default)s)")
    add("--dtype", choices=["float32", "bfloat16"], nargs="+", default=["float32"], help="types (default: %(default)s)")
    add("--num-latents", type=int, default=6, help="latent thoughts (default: %(default)s)")
    add("--answer-tokens", type=int, default=8, help="tokens of an answer (default: %(default)s)")
    add("--sigma", type=float, default=0.5, help="standard deviation of the noise (default: %(default)s)")
    add("--max-rows", type=int, default=512, help="our continuations in memory at once (default: %(default)s)")
    add("--device", default="cpu", help="device (default: %(default)s)")
    add("--threads", type=int, default=0, help="CPU threads (default: torch's own)")
    add("--clock", choices=CLOCKS, default="wall", help="what a second is (default: %(default)s)")
    add("--repeats", type=int, default=3, help="timed rounds (default: %(default)s)")
    add("--reference-repeats", type=int, default=1, help="rounds with the reference, 0 for none (default: %(default)s)")
    add("--reference-rollouts", type=int, default=0, help="rollouts the reference annotates (default: all N)")
    add("--out", help="JSON file to write the table to")
    add("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        work(json.loads(args.job))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = [dict(zip(VARIED, some, strict=True)) for some in itertools.product(*(getattr(args, v) for v in VARIED))]
    rows = [compare(args, setting) for setting in settings]
    title = f"Annotation, {args.num_latents} latents, {args.answer_tokens} tokens"
    show(title, rows, args.out, clock=args.clock, repeats=args.repeats, **machine(args.device))


if __name__ == "__main__":
    main()

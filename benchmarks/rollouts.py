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

import argparse
import itertools
import json
import os
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    CLOCKS,
    SIZES,
    block_flops,
    machine,
    plot_curves,
    random_coconut,
    serve,
    serve_gemm,
    show,
    take_turns,
    vocabulary_flops,
)

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


def work(job: dict[str, Any]) -> None:
    """A worker's side: one implementation at one setting, or the matrix products."""
    from latent_tts.acceleration.kernels.library import SWITCH
    from latent_tts.engine.engine import RolloutEngine
    from latent_tts.sampling import AdditiveGaussianNoise, MonteCarloDropout

    if job["which"] == "reference":
        os.environ[SWITCH] = "off"
    torch.set_grad_enabled(False)
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    device, dtype, problems, n = job["device"], getattr(torch, job["dtype"]), job["problems"], job["num_rollouts"]
    if job["which"] == "GEMM":
        serve_gemm(n * problems, SIZES[job["size"]][1], dtype, job["clock"], device)
        return
    backbone = random_coconut(job["size"], dtype, job["num_latents"], device).freeze()
    backbone.eos_token_id = -1  # random weights must not end an answer early: every rollout decodes all its tokens
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, 256, (problems, job["prompt_length"]), generator=generator).tolist()
    sampler = AdditiveGaussianNoise(0.5) if job["sampler"] == "agn" else MonteCarloDropout(0.1)
    engine = RolloutEngine(backbone, sampler, max_answer_tokens=job["answer_tokens"])
    engine.backbone.encode_prompts = lambda questions: prompts  # type: ignore[method-assign]
    questions = [str(i) for i in range(problems)]
    if job["which"] == "ours":
        serve(lambda: engine.rollout(questions, n), job["clock"], device)
    else:
        serve(lambda: straightforward(backbone, prompts, n, job["answer_tokens"], 0.5), job["clock"], device)


def useful_flops(job: dict[str, Any]) -> int:
    """Operations that N rollouts of P problems need: prompts once, thoughts and answers per rollout, logits per token."""
    per_rollout = job["num_latents"] + job["answer_tokens"]  # the last token is chosen, not fed; end-of-thought is fed
    positions = job["problems"] * (job["prompt_length"] + job["num_rollouts"] * per_rollout)
    logits = job["problems"] * job["num_rollouts"] * job["answer_tokens"]
    return positions * block_flops(job["size"]) + logits * vocabulary_flops(job["size"])


def compare(args: argparse.Namespace, setting: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    job = vars(args) | setting
    count = job["problems"] * job["num_rollouts"]
    names = ["ours", "GEMM"] + (["reference"] if count <= args.reference_limit else [])
    measured = take_turns("benchmarks.rollouts", {name: job | {"which": name} for name in names})
    seconds = {name: [turn["seconds"] for turn in measured[name]] for name in names if name != "GEMM"}
    memory = {name: measured[name][-1]["memory"] / 2**20 for name in seconds}
    rates = {name: [turn[name] for turn in measured["GEMM"]] for name in ("square", "feed-forward")}
    shares = {
        name: statistics.median(useful_flops(job) / s / r for s, r in zip(seconds["ours"], turns, strict=True))
        for name, turns in rates.items()
    }
    ours = statistics.median(seconds["ours"])
    row = {"dtype": job["dtype"], "size": job["size"], "prompt": job["prompt_length"], "problems": job["problems"]}
    row |= {"N": job["num_rollouts"], "ours rollouts/s": count / ours, "ours ms/rollout": 1e3 * ours / count}
    row |= {"ours MiB": memory["ours"], "share of GEMM": shares["square"], "at own shape": shares["feed-forward"]}
    row |= dict.fromkeys(["reference rollouts/s", "reference ms/rollout", "reference MiB", "times faster"])
    if "reference" in seconds:
        theirs = statistics.median(seconds["reference"])
        row |= {"reference rollouts/s": count / theirs, "reference ms/rollout": 1e3 * theirs / count}
        row["reference MiB"] = memory["reference"]
        row["times faster"] = statistics.median(
            r / o for r, o in zip(seconds["reference"], seconds["ours"], strict=True)
        )
    return row | {f"{name} GFLOP/s": statistics.median(turns) / 1e9 for name, turns in rates.items()}


def measure(
    args: argparse.Namespace, values: dict[str, list[Any]], done: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """A row for every combination of the values of the flags; rows are added to those done, none of which is measured again."""
    done = [] if done is None else done
    rows = []
    for some in itertools.product(*values.values()):
        setting = dict(zip(values, some, strict=True))
        known = [row for row in done if all(row[COLUMNS[name]] == value for name, value in setting.items())]
        if not known:
            done.append(compare(args, setting))
        rows.append(known[0] if known else done[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=SIZES, nargs="+", default=["small"], help="model sizes (default: %(default)s, GPT-2 small)")
    add("--num-rollouts", type=int, nargs="+", default=[64], help="values of N (default: %(default)s)")
    add("--problems", type=int, nargs="+", default=[1], help="problems in a batch (default: %(default)s)")
    add("--prompt-length", type=int, nargs="+", default=[80], help="tokens of a prompt (default: %(default)s)")
    add("--dtype", choices=["float32", "bfloat16"], nargs="+", default=["float32"], help="types (default: %(default)s)")
    add("--num-latents", type=int, default=6, help="latent thoughts (default: %(default)s)")
    add("--answer-tokens", type=int, default=8, help="tokens of an answer (default: %(default)s)")
    add("--sampler", choices=["agn", "dropout"], default="agn", help="sampler (default: %(default)s)")
    add("--device", default="cpu", help="device (default: %(default)s)")
    add("--threads", type=int, default=0, help="CPU threads (default: torch's own)")
    add("--clock", choices=CLOCKS, default="wall", help="what a second is (default: %(default)s)")
    add("--repeats", type=int, default=3, help="timed rounds (default: %(default)s)")
    add("--reference-limit", type=int, default=256, help="most rows the reference runs with (default: %(default)s)")
    add("--out", help="JSON file to write the table to")
    add("--curves", help="PNG file: measures the four curves instead, and draws them")
    add("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        work(json.loads(args.job))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    values = {name: getattr(args, name) for name in COLUMNS}
    facts = {"clock": args.clock, "repeats": args.repeats, **machine(args.device)}
    title = f"Rollouts, {args.sampler}, {args.num_latents} latents, {args.answer_tokens} tokens"
    if not args.curves:
        show(title, measure(args, values), args.out, **facts)
        return
    rows: list[dict[str, Any]] = []
    panels = {column: measure(args, values | varied, rows) for column, varied in CURVES.items()}
    show(title, rows, args.out or str(Path(args.curves).with_suffix(".json")), **facts)
    plot_curves(panels, args.curves)


if __name__ == "__main__":
    main()

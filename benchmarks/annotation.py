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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import block_flops, random_coconut, vocabulary_flops
from benchmarks.comparison import Comparison, Job, comparison_arguments


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


def make(job: Job) -> Callable[[], Any]:
    """One implementation at one setting."""
    from latent_tts.annotation.prefix_values import annotate
    from latent_tts.engine.engine import RolloutEngine
    from latent_tts.sampling import AdditiveGaussianNoise

    torch.set_grad_enabled(False)
    backbone = random_coconut(job["size"], getattr(torch, job["dtype"]), job["num_latents"], job["device"]).freeze()
    backbone.eos_token_id = -1  # random weights must not end an answer early: every row decodes all its tokens
    shape = (job["problems"], job["prompt_length"])
    prompts = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0))
    if job["which"] == "reference":
        return lambda: straightforward(backbone, prompts.to(job["device"]), job)
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(job["sigma"]), max_answer_tokens=job["answer_tokens"])
    engine.backbone.encode_prompts = lambda questions: prompts.tolist()  # type: ignore[method-assign]
    questions, golds = [str(i) for i in range(job["problems"])], [0.0] * job["problems"]
    counts = (job["num_rollouts"], job["num_continuations"])
    return lambda: annotate(engine, questions, golds, *counts, max_rows=job["max_rows"])


def useful_flops(job: dict[str, Any]) -> int:
    """Operations that an annotation needs: prompts once, rollouts once, of a continuation what comes after its prefix."""
    thoughts, tokens, rollouts = job["num_latents"], job["answer_tokens"], job["num_rollouts"]
    continued = sum(thoughts - step + tokens for step in range(1, thoughts)) * job["num_continuations"]
    positions = job["prompt_length"] + rollouts * (thoughts + tokens + continued)
    logits = rollouts * tokens * (1 + (thoughts - 1) * job["num_continuations"])
    return job["problems"] * (positions * block_flops(job["size"]) + logits * vocabulary_flops(job["size"]))


def num_rows(job: Job) -> int:
    return min(job["problems"] * job["num_rollouts"] * job["num_continuations"], job["max_rows"])


COMPARISON = Comparison(
    module="benchmarks.annotation",
    unit="problem",
    columns={
        "size": "size",
        "prompt_length": "prompt",
        "problems": "problems",
        "num_rollouts": "N",
        "num_continuations": "M",
        "dtype": "dtype",
    },
    make=make,
    units=lambda job: job["problems"],
    useful_flops=useful_flops,
    gemm_rows=num_rows,
    reference_rounds=lambda job: job["reference_repeats"],
    reference_part=lambda job: (job["reference_rollouts"] or job["num_rollouts"]) / job["num_rollouts"],
    warm_reference=False,  # a call takes minutes
)


def main() -> None:
    parser = comparison_arguments(__doc__, num_rollouts=8)
    add = parser.add_argument
    add("--num-continuations", type=int, nargs="+", default=[16], help="values of M (default: %(default)s)")
    add("--problems", type=int, nargs="+", default=[1], help="problems in a batch (default: %(default)s)")
    add("--answer-tokens", type=int, default=8, help="tokens of an answer (default: %(default)s)")
    add("--sigma", type=float, default=0.5, help="standard deviation of the noise (default: %(default)s)")
    add("--max-rows", type=int, default=512, help="our continuations in memory at once (default: %(default)s)")
    add("--reference-repeats", type=int, default=1, help="rounds with the reference, 0 for none (default: %(default)s)")
    add("--reference-rollouts", type=int, default=0, help="rollouts the reference annotates (default: all N)")
    COMPARISON.main(parser, "Annotation, {num_latents} latents, {answer_tokens} tokens")


if __name__ == "__main__":
    main()

"""The memory of a batch of rollouts, measured beside what `--data.batch_size auto` reckons with.

    python -m benchmarks.batch_memory                                    GPT-2 small, prompt 80, 2 problems, N = 16 and 64
    python -m benchmarks.batch_memory --size tiny --problems 4 16 --num-rollouts 8 64

Measured is the most that the process holds during a call, beyond what it held before; reckoned is what `BatchBudget` counts for
the problems and their rollouts, without the part that does not depend on the batch.
"""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any

import torch

from benchmarks.common import SIZES, machine, peak_bytes, random_coconut, show, start_counting
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.memory import BatchBudget
from latent_tts.sampling import AdditiveGaussianNoise


def measure(engine: RolloutEngine, prompts: list[list[int]], num_rollouts: int) -> dict[str, Any]:
    """One row of the table."""
    engine.backbone.encode_prompts = lambda questions: prompts[: len(questions)]  # type: ignore[method-assign]
    questions = [str(i) for i in range(len(prompts))]
    before = start_counting()
    engine.rollout(questions, num_rollouts)
    measured = peak_bytes() - before
    budget = BatchBudget.of(engine, num_rollouts, free=0)
    reckoned = len(prompts) * (len(prompts[0]) * budget.per_prompt_token + num_rollouts * budget.per_rollout)
    return {
        "problems": len(prompts),
        "N": num_rollouts,
        "measured MiB": measured / 2**20,
        "reckoned MiB": reckoned / 2**20,
        "ratio": reckoned / measured,
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="model size (default: %(default)s, GPT-2 small)")
    parser.add_argument(
        "--problems", type=int, nargs="+", default=[2], help="problems in a batch (default: %(default)s)"
    )
    parser.add_argument(
        "--num-rollouts", type=int, nargs="+", default=[16, 64], help="values of N (default: %(default)s)"
    )
    parser.add_argument("--prompt-length", type=int, default=80, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument("--answer-tokens", type=int, default=8, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--out", help="JSON file to write the table to")
    args = parser.parse_args()
    backbone = random_coconut(args.size).freeze()
    backbone.eos_token_id = -1  # random weights must not end an answer early
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(0.5), args.answer_tokens)
    engine.rollout(["a first call, for what stays in memory after it"], 1)
    prompts = torch.randint(1, 256, (max(args.problems), args.prompt_length)).tolist()
    rows = [measure(engine, prompts[:problems], n) for problems, n in product(args.problems, args.num_rollouts)]
    show(
        f"{args.size}, float32, prompt {args.prompt_length}, {args.answer_tokens} tokens",
        rows,
        args.out,
        machine=machine(),
    )


if __name__ == "__main__":
    main()

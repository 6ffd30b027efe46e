"""Greedy accuracy, coverage and voting over a grid of sampler settings, to choose sigma and p before an evaluation.

    python -m benchmarks.sampler_sweep --backbone checkpoints/tiny-coconut --sigma 0.25 0.5 1 --p 0.05 0.1 0.2

The problems are of the validation part of GSM-Symbolic, which neither training nor the evaluations draw from.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks.common import arguments, show, validation_problems
from benchmarks.timing import machine


def main() -> None:
    from latent_tts import load_backbone
    from latent_tts.sampling import AdditiveGaussianNoise, Deterministic, MonteCarloDropout, NativeGaussian

    parser = arguments(__doc__)
    parser.add_argument(
        "--backbone", default="checkpoints/tiny-coconut", help="folder or hub id (default: %(default)s)"
    )
    parser.add_argument("--templates", type=int, nargs="+", help="GSM-Symbolic templates (default: all that parse)")
    parser.add_argument("--problems", type=int, default=200, help="number of problems (default: %(default)s)")
    parser.add_argument("--num-rollouts", type=int, default=16, help="N (default: %(default)s)")
    parser.add_argument("--sigma", type=float, nargs="*", default=[], help="noise deviations to try")
    parser.add_argument(
        "--temperature", type=float, nargs="*", default=[], help="factors on a CoLaR's own spread to try"
    )
    parser.add_argument("--p", type=float, nargs="*", default=[], help="dropout probabilities to try")
    parser.add_argument("--sites", choices=["ffn", "residual"], default="residual", help="dropout sites")
    parser.add_argument("--scope", default="latent", help="dropout scope (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=25, help="problems at a time (default: %(default)s)")
    parser.add_argument("--max-answer-tokens", type=int, default=12, help="answer limit (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=77, help="seed of problems and draws (default: %(default)s)")
    args = parser.parse_args()
    backbone = load_backbone(args.backbone).to(args.device).freeze()
    problems = validation_problems(args.seed, args.problems, args.templates)
    samplers: list[Any] = [Deterministic(), *map(AdditiveGaussianNoise, args.sigma)]
    samplers += map(NativeGaussian, args.temperature)
    samplers += [MonteCarloDropout(p, args.sites, args.scope) for p in args.p]
    rows = [measure(backbone, sampler, problems, args) for sampler in samplers]
    title = f"{args.backbone}, {args.problems} problems, N = {args.num_rollouts}"
    show(title, rows, args.out, machine=machine(args.device))


@torch.inference_mode()
def measure(backbone: Any, sampler: Any, problems: list[Any], args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table: a sampler on all problems."""
    from latent_tts.aggregation import MajorityVoting
    from latent_tts.answers import answers_equal
    from latent_tts.engine.engine import RolloutEngine
    from latent_tts.metrics.diversity import step_diversity
    from latent_tts.sampling import Deterministic

    n = 1 if isinstance(sampler, Deterministic) else args.num_rollouts
    engine, started = RolloutEngine(backbone, sampler, args.max_answer_tokens), time.perf_counter()
    single, voting, covered, invalid, spread, latents = [], [], [], [], [], []
    for first in range(0, len(problems), args.batch_size):
        batch = problems[first : first + args.batch_size]
        rollouts = engine.rollout([p.question for p in batch], n, args.seed, [p.problem_id for p in batch])
        for i, problem in enumerate(batch):
            answers = rollouts.answers[i]
            correct = [answers_equal(answer, problem.gold) for answer in answers]
            single.append(sum(correct) / n)
            covered.append(any(correct))
            invalid.append(sum(answer is None for answer in answers) / n)
            voting.append(MajorityVoting().expected_accuracy(answers, correct, None, None, [n])[0])
            spread.append(
                float(step_diversity(rollouts.latents[i], rollouts.num_latents[i]).nanmean()) if n > 1 else 0.0
            )
        latents += rollouts.num_latents.flatten().tolist()
    numbers: dict[str, list[Any]] = {
        "single": single,
        "majority": voting,
        "coverage": covered,
        "invalid": invalid,
        "diversity": spread,
    }
    numbers |= {"latents": latents}
    means = {name: sum(values) / len(values) for name, values in numbers.items()}
    return {"sampler": str(sampler), **means, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()

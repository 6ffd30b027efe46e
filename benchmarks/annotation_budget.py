"""What N rollouts and M continuations cost, and how noisy the labels are that they buy: the table of docs/annotation.md.

    python -m benchmarks.annotation_budget --backbone checkpoints/tiny-coconut

One annotation at the largest N and M of the grid is measured; its smaller cells follow from it, since the first n rollouts and
m continuations are those of a smaller run. Continuations are drawn for problems with right and wrong rollouts only, and all
numbers are means over these. With v the share of right answers among the M continuations of a prefix:

    noise        standard error of a label, sqrt(mean of v (1 - v) M / (M - 1) / m), over the prefixes valued by continuations
    signal       standard deviation of the true values between the rollouts of a problem, at one step: the variance of v less
                 that of its own noise
    reliability  signal^2 / (signal^2 + noise^2), the share of the differences between labels that is no noise
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import arguments, show
from benchmarks.timing import machine
from commands.guard import main_guard
from datamodules.rollout_data import RolloutDataModule
from latent_tts.annotation.prefix_values import AnnotatedRollouts, annotate
from latent_tts.backbones import load_backbone
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.prompts import make_prompts
from latent_tts.errors import UserError
from latent_tts.problems import Problem
from latent_tts.sampling import AdditiveGaussianNoise, MonteCarloDropout


def measure(args: argparse.Namespace) -> tuple[dict[str, float], Tensor, Tensor]:
    """Cost per problem, rollout and continuation in token steps, and the values and latents' numbers of all rollouts."""
    sampler = AdditiveGaussianNoise(args.sigma) if args.dropout is None else MonteCarloDropout(args.dropout)
    backbone = load_backbone(args.backbone).to(args.device).freeze()
    engine = RolloutEngine(backbone, sampler, args.max_answer_tokens)
    data = RolloutDataModule(
        "gsm-symbolic", split=args.split, seed=args.seed, size=args.problems, templates=args.templates
    )
    problems = list(data.problems())
    started = time.perf_counter()
    parts = [run(engine, problems[i : i + 8], args) for i in range(0, len(problems), 8)]
    seconds = time.perf_counter() - started
    rollouts, continuations = max(args.num_rollouts), max(args.num_continuations)
    prompts = engine.prompt_steps(
        make_prompts(backbone, [problem.question for problem in problems], None, args.max_answer_tokens), rollouts
    )
    own = torch.cat([part.rollouts.token_steps for part in parts]) - prompts
    continued = torch.cat([part.token_steps - part.rollouts.token_steps for part in parts])
    mixed = continued > 0
    if not bool(mixed.any()):
        raise UserError(
            f"None of the {len(problems)} problems has right and wrong rollouts; draw more, or more problems."
        )
    cost = {
        "problems": len(problems),
        "problems with right and wrong rollouts": int(mixed.sum()),
        "prompt": float(prompts[mixed].double().mean()),
        "rollout": float(own[mixed].double().mean()) / rollouts,
        "continuations of a rollout": float(continued[mixed].double().mean()) / rollouts / continuations,
        "seconds per problem": seconds / len(problems),
    }
    values, num_latents = (
        torch.cat(rows)[mixed] for rows in ([p.values for p in parts], [p.rollouts.num_latents for p in parts])
    )
    return cost, values, num_latents


def run(engine: RolloutEngine, problems: list[Problem], args: argparse.Namespace) -> AnnotatedRollouts:
    return annotate(
        engine,
        [problem.question for problem in problems],
        [problem.gold for problem in problems],
        max(args.num_rollouts),
        max(args.num_continuations),
        problem_ids=[problem.problem_id for problem in problems],
        continue_uniform=False,
    )


def noise_and_signal(values: Tensor, num_latents: Tensor, num_continuations: int) -> tuple[float, float]:
    """Variance of one continuation's outcome, and variance of true values between rollouts, (P, N, T) to two numbers."""
    steps = torch.arange(1, values.shape[2] + 1)
    estimated = steps < num_latents.cpu().unsqueeze(-1)  # the last prefix has its rollout's own answer
    outcome = values * (1 - values) * num_continuations / (num_continuations - 1)
    variance = values.masked_fill(~estimated, float("nan"))
    count = estimated.sum(dim=1)  # (P, T)
    spread = (variance - variance.nanmean(dim=1, keepdim=True)).square().nansum(dim=1) / (count - 1)
    single = float(outcome[estimated].double().mean())
    between = float(spread[count > 1].double().mean())
    return single, max(between - single / num_continuations, 0.0)


def table(args: argparse.Namespace, cost: dict[str, float], single: float, between: float) -> list[dict[str, Any]]:
    rows = []
    for rollouts in args.num_rollouts:
        for continuations in args.num_continuations:
            noise = single / continuations
            rows.append(
                {
                    "N": rollouts,
                    "M": continuations,
                    "token steps": round(
                        cost["prompt"]
                        + rollouts * (cost["rollout"] + continuations * cost["continuations of a rollout"])
                    ),
                    "noise of a label": round(noise**0.5, 3),
                    "reliability": round(between / (between + noise), 2) if between + noise else None,
                }
            )
    return rows


def main() -> None:
    parser = arguments(__doc__)
    add = parser.add_argument
    add("--backbone", default="checkpoints/tiny-coconut", help="folder or hub id (default: %(default)s)")
    add("--num-rollouts", type=int, nargs="+", default=[4, 8, 16], help="values of N (default: %(default)s)")
    add("--num-continuations", type=int, nargs="+", default=[1, 4, 16, 64], help="values of M (default: %(default)s)")
    add("--problems", type=int, default=48, help="gsm-symbolic problems (default: %(default)s)")
    add(
        "--templates",
        type=int,
        nargs="+",
        default=[48, 10, 78, 58, 9, 34, 95, 16, 26, 64, 82, 57],
        help="their templates",
    )
    add("--split", default="train", help="their split (default: %(default)s)")
    add("--seed", type=int, default=2, help="their seed (default: %(default)s)")
    add("--sigma", type=float, default=0.5, help="additive noise (default: %(default)s)")
    add("--dropout", type=float, help="MC-dropout with this probability instead")
    add("--max-answer-tokens", type=int, default=12, help="tokens of an answer (default: %(default)s)")
    args = parser.parse_args()
    cost, values, num_latents = measure(args)
    single, between = noise_and_signal(values, num_latents, max(args.num_continuations))
    rows = table(args, cost, single, between)
    facts = cost | {"signal": between**0.5, "machine": machine(args.device), "arguments": vars(args)}
    show(f"Annotation of {args.backbone}, {args.problems} problems", rows, args.out, **facts)


if __name__ == "__main__":
    raise SystemExit(main_guard(main))

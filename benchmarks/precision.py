"""What half precision does to answers: the same problems and random draws in float32 and in cheaper arithmetic.

    python -m benchmarks.precision                     checkpoints/tiny-coconut, its demo's 500 problems, N = 16
    python -m benchmarks.precision --backbone FOLDER --templates 43 48 10 --sigma 0.5 --out precision.json

float32           --model.dtype float32, the reference
bfloat16          --model.dtype bfloat16: weights, activations and latents
mixed             --trainer.precision bf16-mixed: products in bfloat16; weights, residual stream and latents in float32
bfloat16, latents in float32
                  weights and products in bfloat16, norms, residual stream and latents in float32

"changed" is the share of greedy answers, and of sampled rollouts' answers, that are not those of float32. Differences of accuracy
are in points, with 95 % intervals of the paired difference. All draws are the same, so
"float32, another seed" shows how much of a sampled difference is chance.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import arguments, show
from benchmarks.timing import machine
from latent_tts.aggregation import MajorityVoting
from latent_tts.answers import answers_equal
from latent_tts.backbones import LatentBackbone, load_backbone
from latent_tts.engine.engine import RolloutEngine
from latent_tts.metrics.accuracy import PairedDifference
from latent_tts.problems import Problem
from latent_tts.sampling import AdditiveGaussianNoise, Deterministic

VALUES = ("greedy", "single", "voting", "coverage")


@dataclass
class Answers:
    """What one precision gives for P problems."""

    greedy: list[float | None]
    rollouts: list[list[float | None]]  # P lists of N
    values: Tensor  # (P, 4) float64, in the order of VALUES
    seconds: float


@torch.inference_mode()
def answer(
    backbone: LatentBackbone, problems: list[Problem], args: argparse.Namespace, mixed: bool, seed: int
) -> Answers:
    greedy_engine = RolloutEngine(backbone, Deterministic(), args.max_answer_tokens)
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(args.sigma), args.max_answer_tokens)
    found, started = Answers([], [], torch.empty(0), 0.0), time.perf_counter()
    with torch.autocast(backbone.device.type, torch.bfloat16) if mixed else nullcontext():
        for first in range(0, len(problems), args.batch_size):
            batch = problems[first : first + args.batch_size]
            questions, ids = [p.question for p in batch], [p.problem_id for p in batch]
            found.greedy += [row[0] for row in greedy_engine.rollout(questions, 1, seed, ids).answers]
            found.rollouts += engine.rollout(questions, args.num_rollouts, seed, ids).answers
    found.seconds = time.perf_counter() - started
    found.values = torch.tensor(
        [values(*parts) for parts in zip(problems, found.greedy, found.rollouts, strict=True)], dtype=torch.float64
    )
    return found


def values(problem: Problem, greedy: float | None, answers: list[float | None]) -> list[float]:
    """Whether greedy is right, the mean over rollouts, whether voting over all N is right (by chance at ties), coverage@N."""
    correct = [answers_equal(answer, problem.gold) for answer in answers]
    voting = MajorityVoting().expected_accuracy(answers, correct, None, None, [len(answers)])[0]
    return [float(answers_equal(greedy, problem.gold)), sum(correct) / len(correct), voting, float(any(correct))]


def latents_in_float32(backbone: LatentBackbone) -> LatentBackbone:
    """Weights in bfloat16, but norms, embeddings that are fed, and with them the residual stream and the latents in float32."""
    for module in backbone.modules():
        if isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm"):
            module.float()
    embed = backbone.embed
    backbone.embed = lambda ids: embed(ids).float()  # type: ignore[method-assign]
    return backbone


def compare(name: str, found: Answers, reference: Answers) -> dict[str, Any]:
    """One row of the table."""
    pairs = [pair for rows in zip(found.rollouts, reference.rollouts, strict=True) for pair in zip(*rows, strict=True)]
    greedy = list(zip(found.greedy, reference.greedy, strict=True))
    row: dict[str, Any] = {
        "precision": name,
        "greedy changed": sum(a != b for a, b in greedy) / len(greedy),
        "rollouts changed": sum(a != b for a, b in pairs) / len(pairs),
    }
    for i, value in enumerate(VALUES):
        row[value] = f"{100 * float(found.values[:, i].mean()):.1f}"
        if found is not reference:
            difference = PairedDifference([value])
            difference.update(found.values[:, i : i + 1], reference.values[:, i])
            gap = difference.compute()[value]
            row[value] += f" ({100 * gap.mean:+.2f}: {100 * gap.low:+.2f} to {100 * gap.high:+.2f})"
    return row | {"seconds": found.seconds}


def main() -> None:
    from datamodules.rollout_data import RolloutDataModule

    parser = arguments(__doc__)
    parser.add_argument(
        "--backbone", default="checkpoints/tiny-coconut", help="folder or hub id (default: %(default)s)"
    )
    parser.add_argument("--source", default="gsm-symbolic", help="problems, as --data.source (default: %(default)s)")
    parser.add_argument("--templates", type=int, nargs="+", default=[48, 10, 9, 34, 26, 64, 57], help="of gsm-symbolic")
    parser.add_argument("--problems", type=int, default=500, help="number of problems (default: %(default)s)")
    parser.add_argument("--num-rollouts", type=int, default=16, help="N (default: %(default)s)")
    parser.add_argument("--sigma", type=float, default=2.0, help="deviation of the noise (default: %(default)s)")
    parser.add_argument("--max-answer-tokens", type=int, default=12, help="answer limit (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=25, help="problems at a time (default: %(default)s)")
    parser.add_argument("--data-seed", type=int, default=1000, help="seed of the problems (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: %(default)s)")
    args = parser.parse_args()
    symbolic = args.source == "gsm-symbolic"
    data = RolloutDataModule(
        args.source, limit=args.problems, seed=args.data_seed, size=args.problems,
        templates=args.templates if symbolic else None,
    )  # fmt: skip
    problems = sorted(data.problems(), key=lambda problem: len(problem.question))
    load = lambda dtype: load_backbone(args.backbone, dtype=dtype).to(args.device).freeze()  # noqa: E731
    found = {
        "float32": answer(load("float32"), problems, args, False, args.seed),
        "bfloat16": answer(load("bfloat16"), problems, args, False, args.seed),
        "mixed": answer(load("float32"), problems, args, True, args.seed),
        "bfloat16, latents in float32": answer(latents_in_float32(load("bfloat16")), problems, args, True, args.seed),
        "float32, another seed": answer(load("float32"), problems, args, False, args.seed + 1),
    }
    rows = [compare(name, answers, found["float32"]) for name, answers in found.items()]
    title = f"{args.backbone}, {len(problems)} problems, N = {args.num_rollouts}, sigma {args.sigma}"
    show(title, rows, args.out, machine=machine(args.device))


if __name__ == "__main__":
    main()

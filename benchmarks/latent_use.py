"""Whether a model uses its latent thoughts: greedy accuracy with them, with zeros in their place, and with none.

    python -m benchmarks.latent_use --backbone checkpoints/tiny-codi --templates 48 10 9 34 26 64 57

With `--written-form`, the prompt that opens its written steps, a CODI is also measured as its own teacher.

The problems are of the validation part of GSM-Symbolic, which neither training nor the evaluations draw from.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.common import arguments, show, validation_problems
from benchmarks.timing import machine


def main() -> None:
    from latent_tts import load_backbone
    from latent_tts.backbones.cot import Cot

    parser = arguments(__doc__)
    parser.add_argument("--backbone", required=True, help="folder or hub id of a COCONUT or CODI")
    parser.add_argument("--templates", type=int, nargs="+", help="GSM-Symbolic templates (default: all that parse)")
    parser.add_argument("--problems", type=int, default=200, help="number of problems (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=50, help="problems at a time (default: %(default)s)")
    parser.add_argument("--max-answer-tokens", type=int, default=12, help="answer limit (default: %(default)s)")
    parser.add_argument(
        "--written-form", help="prompt form of written reasoning, with {question} and \\n for a line break"
    )
    parser.add_argument("--seed", type=int, default=77, help="seed of the problems (default: %(default)s)")
    args = parser.parse_args()
    backbone = load_backbone(args.backbone).to(args.device).freeze()
    problems = validation_problems(args.seed, args.problems, args.templates)
    rows = [{"latents": f"{backbone.num_latents}, as thought", "greedy": accuracy(backbone, problems, args)}]
    rows += [{"latents": "none", "greedy": accuracy(backbone, problems, args, num_latents=0)}]
    if args.written_form is not None:
        writer = Cot(backbone.model, backbone.tokenizer, prompt_form=args.written_form.replace("\\n", "\n")).eval()
        rows += [{"latents": "none, steps written", "greedy": accuracy(writer, problems, args, max_tokens=128)}]
    backbone.next_latent = torch.zeros_like  # type: ignore[method-assign, assignment]
    rows += [{"latents": f"{backbone.num_latents}, zeros", "greedy": accuracy(backbone, problems, args)}]
    show(f"{args.backbone}, {args.problems} problems", rows, args.out, machine=machine(args.device))


def accuracy(
    backbone: Any,
    problems: list[Any],
    args: argparse.Namespace,
    num_latents: int | None = None,
    max_tokens: int | None = None,
) -> float:
    """Share of the problems that are answered right after `num_latents` latents, by default the model's own number."""
    from latent_tts.answers import answers_equal, parse_answer
    from latent_tts.training.differentiable import greedy_texts

    latents, right = backbone.num_latents if num_latents is None else num_latents, 0
    for first in range(0, len(problems), args.batch_size):
        batch = problems[first : first + args.batch_size]
        texts = greedy_texts(
            backbone, [problem.question for problem in batch], latents, max_tokens or args.max_answer_tokens
        )
        right += sum(answers_equal(parse_answer(text), p.gold) for text, p in zip(texts, batch, strict=True))
    return right / len(problems)


if __name__ == "__main__":
    main()

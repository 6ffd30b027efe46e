"""What refilling a batch with new problems could save where rollouts end at different times, beyond what leaving the batch saves.

    python -m benchmarks.refill --backbone FOLDER     a trained CoLaR, on GSM-Symbolic problems
    python -m benchmarks.refill                       random weights, lengths that vary as much as geometric ones

Rollouts that are done leave the batch when a quarter of it is done. "Waiting" is the share of row positions that go through the
model in vain all the same: rows that wait for that quarter, or fill up the rectangle of problems by rollouts. In a refilled batch
a problem's N rows make room for another problem when its last rollout is done, so they wait for that one; in return every pass is
over a full batch, at the lowest cost per row. "Time if refilled" is the share of the passes' time that remains if every row of a
problem takes as many positions as its longest, at the median cost per row of the full batch. Without a backbone the model stops
after each thought with the chance --stop, and ends its answer after each token with the chance --end.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import arguments, byte_tokenizer, show, validation_problems
from benchmarks.timing import machine, synchronize
from latent_tts.attention.shared_prefix import SharedPrefixCache
from latent_tts.backbones import LatentBackbone, load_backbone
from latent_tts.backbones.colar import Colar
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.rollouts import Rollouts
from latent_tts.sampling import AdditiveGaussianNoise


def now(device: str) -> float:
    """Seconds of the processor, which others' load leaves alone; of the wall where an accelerator computes."""
    synchronize(device)
    return time.process_time() if device == "cpu" else time.perf_counter()


class Clock:
    """Watches a backbone: rows and processor seconds of every pass, and whether it was over prompts."""

    def __init__(self, backbone: Any) -> None:
        self.passes: list[tuple[int, int, float]] = []  # rows, positions a row, seconds
        self.last_hidden = backbone.last_hidden
        backbone.last_hidden = self.count

    def count(self, inputs: Tensor, mask: Tensor | None, positions: Tensor, cache: Any = None) -> Tensor:
        started = now(inputs.device.type)
        hidden: Tensor = self.last_hidden(inputs, mask, positions, cache)
        if isinstance(cache, SharedPrefixCache):  # not the prompts
            self.passes.append((inputs.shape[0], inputs.shape[1], now(inputs.device.type) - started))
        return hidden


def random_colar(args: argparse.Namespace) -> Colar:
    """A random Llama as CoLaR that stops and ends at random, by a hash of its own hidden states."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    fast = byte_tokenizer(Colar.special_tokens)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=args.width, intermediate_size=4 * args.width, num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64, num_key_value_heads=args.width // 64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    backbone = Colar(LlamaForCausalLM(config), fast, num_latents=64).eval()
    logits = backbone.logits

    def random_stops(hidden: Tensor) -> Tensor:
        scores, chance = logits(hidden), hidden.double().sum(dim=-1).mul(1e4).frac().abs()  # (R,), as good as uniform
        scores[chance < args.stop, backbone.end_of_thought_id] = float("inf")
        scores[(chance >= args.stop) & (chance < args.stop + args.end), backbone.eos_token_id] = float("inf")
        return scores

    backbone.logits = random_stops  # type: ignore[method-assign]
    return backbone


def measure(backbone: LatentBackbone, args: argparse.Namespace, problems: int) -> dict[str, Any]:
    """One row of the table: a batch of so many problems."""
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(args.sigma), args.max_answer_tokens)
    questions = sorted((p.question for p in validation_problems(args.seed, problems)), key=len, reverse=True)
    engine.rollout(questions[:1], args.num_rollouts)
    clock = Clock(backbone)
    started = now(args.device)
    rollouts = engine.rollout(questions, args.num_rollouts)
    seconds = now(args.device) - started
    backbone.last_hidden = clock.last_hidden  # type: ignore[method-assign]
    useful = int(positions_of(rollouts).sum())
    fed = sum(rows * positions for rows, positions, _ in clock.passes)
    refilled = int(positions_of(rollouts).amax(dim=1).sum()) * args.num_rollouts
    in_passes = sum(spent for _, _, spent in clock.passes)
    full = [
        spent / rows
        for rows, positions, spent in clock.passes
        if rows == problems * args.num_rollouts and positions == 1
    ]
    per_row = sorted(full)[len(full) // 2]
    lengths = rollouts.num_latents.double()
    return {
        "problems": problems,
        "rows": problems * args.num_rollouts,
        "thoughts": f"{lengths.mean():.1f} ± {lengths.std():.1f} (within problems {lengths.std(dim=1).mean():.1f})",
        "seconds": seconds,
        "waiting": 1 - useful / fed,
        "waiting if refilled": 1 - useful / refilled,
        "time if refilled": refilled * per_row / in_passes,
    }


def positions_of(rollouts: Rollouts) -> Tensor:
    """(P, N) positions that had to go through the model: thoughts, end-of-thought, and answer tokens but the last of each."""
    written = (rollouts.answer_ids != 0).sum(dim=2) + 1  # the end of text is token 0, and so is what comes after it
    return rollouts.num_latents + written.clamp(max=rollouts.answer_ids.shape[2])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--backbone", help="folder or hub id of a CoLaR (default: random weights)")
    parser.add_argument("--problems", type=int, nargs="+", default=[4, 16, 64], help="problems in a batch")
    parser.add_argument("--num-rollouts", type=int, default=16, help="N (default: %(default)s)")
    parser.add_argument("--sigma", type=float, default=1.0, help="deviation of the noise (default: %(default)s)")
    parser.add_argument(
        "--stop", type=float, default=0.08, help="chance to stop after a thought (default: %(default)s)"
    )
    parser.add_argument("--end", type=float, default=0.3, help="chance to end after a token (default: %(default)s)")
    parser.add_argument("--max-answer-tokens", type=int, default=16, help="answer limit (default: %(default)s)")
    parser.add_argument(
        "--width", type=int, default=512, help="hidden size of the random weights (default: %(default)s)"
    )
    parser.add_argument("--layers", type=int, default=8, help="layers of the random weights (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=5, help="seed of the problems (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # processor seconds of waiting threads would count
    backbone = (random_colar(args) if args.backbone is None else load_backbone(args.backbone)).to(args.device)
    rows = [measure(backbone, args, problems) for problems in args.problems]
    show(f"Refilling, {args.backbone or 'random weights'}, N = {args.num_rollouts}", rows, args.out, machine=machine())


if __name__ == "__main__":
    main()

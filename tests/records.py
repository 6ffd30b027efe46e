"""Made-up prediction records, for tests of what is computed from them."""

from __future__ import annotations

import random
from typing import Any


def make_record(
    seed: int,
    num_rollouts: int = 4,
    num_steps: int = 3,
    scored: bool = True,
    search: bool = False,
    written: bool = False,
) -> dict[str, Any]:
    """A record with answers 0, 1, 2 or None, of which 1 is right, and scores that favour right answers a little."""
    rng = random.Random(seed)
    answers = [rng.choice([0.0, 1.0, 1.0, 2.0, None]) for _ in range(num_rollouts)]
    lengths = [rng.randint(1, num_steps) for _ in answers]
    record = {
        "problem_id": f"problem-{seed}",
        "question": f"What is {seed}?",
        "gold": 1.0,
        "greedy": {"text": "### 1", "answer": 1.0, "correct": seed % 2 == 0},
        "rollouts": [
            {
                "text": f"### {answer}",
                "answer": answer,
                "correct": answer == 1.0,
                "num_latents": length,
                "step_scores": [rng.gauss(0.5 * (answer == 1.0), 1) for _ in range(length)] if scored else None,
            }
            for answer, length in zip(answers, lengths, strict=True)
        ],
        "search": {"beam_search@2x2": {"answer": 1.0, "correct": seed % 3 == 0, "token_steps": 40 + seed}}
        if search
        else {},
        "diversity": [0.25, 0.5, None][:num_steps] if num_rollouts > 1 else [None] * num_steps,
        "token_steps": {
            "rollouts": 10 + 5 * num_rollouts,
            "rollouts_shared": 10,
            "reward": (9 + 3 * num_rollouts) * scored,
            "reward_shared": 9 * scored,
            "greedy": 15,
        },
        "chosen": {},
    }
    if written:
        record["written"] = {"text": "### 1", "answer": 1.0, "correct": seed % 4 == 0, "token_steps": 60 + seed}
    return record

"""Made-up records, for tests of what is computed from them."""

from __future__ import annotations

import random

from latent_tts.evaluation.records import AnswerRecord, Record, RolloutRecord, SearchRecord, TokenSteps
from latent_tts.evaluation.strategies import Strategy, of_search
from latent_tts.search import BeamSearch

SEARCH = of_search(BeamSearch(2, 2))


def make_record(
    seed: int,
    num_rollouts: int = 4,
    num_steps: int = 3,
    scored: bool = True,
    searches: tuple[Strategy, ...] = (),
    written: bool = False,
) -> Record:
    """A record with answers 0, 1, 2 or None, of which 1 is right, and scores that favour right answers a little.

    The search number i of problem `seed` is right where (seed + i) is divisible by 3, for 40 + seed + i positions.
    """
    rng = random.Random(seed)
    answers = [rng.choice([0.0, 1.0, 1.0, 2.0, None]) for _ in range(num_rollouts)]
    lengths = [rng.randint(1, num_steps) for _ in answers]
    rollouts = [
        RolloutRecord(
            text=f"### {answer}",
            answer=answer,
            correct=answer == 1.0,
            num_latents=length,
            step_scores=tuple(rng.gauss(0.5 * (answer == 1.0), 1) for _ in range(length)) if scored else None,
        )
        for answer, length in zip(answers, lengths, strict=True)
    ]
    return Record(
        problem_id=f"problem-{seed}",
        question=f"What is {seed}?",
        gold=1.0,
        greedy=AnswerRecord("### 1", 1.0, seed % 2 == 0),
        rollouts=tuple(rollouts),
        search={
            one.key: SearchRecord("### 1", 1.0, (seed + i) % 3 == 0, 40 + seed + i) for i, one in enumerate(searches)
        },
        diversity=((0.25, 0.5, None) if num_rollouts > 1 else (None,) * 3)[:num_steps],
        token_steps=TokenSteps(
            rollouts=10 + 5 * num_rollouts,
            rollouts_shared=10,
            reward=(9 + 3 * num_rollouts) * scored,
            reward_shared=9 * scored,
            greedy=15,
        ),
        chosen={},
        written=SearchRecord("### 1", 1.0, seed % 4 == 0, 60 + seed) if written else None,
    )

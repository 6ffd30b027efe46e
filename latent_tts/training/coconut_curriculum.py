"""COCONUT's curriculum: which stage an epoch trains, and what a written solution looks like in that stage.

Stage 0 is ordinary chain-of-thought. Stage s replaces the first s written steps by `latents_per_step * s` latent
thoughts; after the last latent stage comes a final one, in which no written step is left:

    stage 0      question <start>                 <end> step1 step2 step3 step4 answer <eos>
    stage 1      question <start> h1 h2           <end> step2 step3 step4 answer <eos>
    stage 3      question <start> h1 h2 .. h5 h6  <end> step4 answer <eos>
    stage 4      question <start> h1 h2 .. h5 h6  <end> answer <eos>

The number of latents depends on the stage alone, also where an example has fewer steps than the stage replaces, since
an evaluation thinks equally long about every problem.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample

EncodeBatch = Callable[[list[str]], list[list[int]]]  # texts -> token ids, without special tokens


@dataclass(frozen=True)
class Curriculum:
    """The schedule of stages over epochs."""

    cot_epochs: int = 3
    """Epochs of plain chain-of-thought before the first latent stage."""
    epochs_per_stage: int = 3
    """Epochs each latent stage lasts; the final stage, without written steps, takes all epochs that are left."""
    latent_stages: int = 3
    """Number of latent stages, each of which replaces one more written step."""
    latents_per_step: int = 2
    """Latent thoughts that stand for one written step."""
    uniform_prob: float = 0.0
    """Probability that an example is trained at a random earlier stage instead of the current one."""
    first_epoch: int = 0
    """Epoch of this schedule that the training begins with: what comes before it, another training has done."""

    def __post_init__(self) -> None:
        at_least_1 = min(self.epochs_per_stage, self.latent_stages, self.latents_per_step)
        if min(self.cot_epochs, self.first_epoch) < 0 or at_least_1 < 1:
            raise UserError(
                f"{self} is not usable: cot_epochs and first_epoch must be at least 0, and epochs_per_stage, latent_stages and "
                "latents_per_step at least 1."
            )
        if not 0.0 <= self.uniform_prob <= 1.0:
            raise UserError(f"uniform_prob is {self.uniform_prob}; choose a probability from 0 to 1.")

    @property
    def final_stage(self) -> int:
        return self.latent_stages + 1

    @property
    def max_latents(self) -> int:
        return self.latent_stages * self.latents_per_step

    def stage(self, epoch: int) -> int:
        """The stage that `epoch` (from 0) of the training is in."""
        epoch += self.first_epoch
        if epoch < self.cot_epochs:
            return 0
        return min(1 + (epoch - self.cot_epochs) // self.epochs_per_stage, self.final_stage)

    def num_latents(self, stage: int) -> int:
        return min(stage, self.latent_stages) * self.latents_per_step

    def steps_left(self, steps: Sequence[str], stage: int) -> list[str]:
        """The steps that `stage` still writes out."""
        return [] if stage >= self.final_stage else list(steps[stage:])

    def describe(self, stage: int) -> str:
        """A stage in words, for the log."""
        name, latents = f"stage {stage} of {self.final_stage}", self.num_latents(stage)
        if stage == 0:
            return f"{name}, chain-of-thought, no latents"
        steps = "all written steps" if stage == self.final_stage else f"the first {stage} written steps"
        return f"{name}, {latents} latents in place of {steps}"

    def draw_stage(self, stage: int, key: str) -> int:
        """`stage`, or with probability `uniform_prob` one of the stages before it; a function of `key` alone."""
        if self.uniform_prob == 0.0 or stage == 0:
            return stage
        rng = random.Random(key)
        return rng.randrange(stage) if rng.random() < self.uniform_prob else stage


@dataclass(frozen=True)
class ThoughtSequence:
    """One training example as tokens: the prompt, a number of latent thoughts, and what is written after them."""

    prompt_ids: list[int]  # question and start-of-thought token
    num_latents: int
    tail_ids: list[int]  # end-of-thought token, remaining steps, answer, end of text; all but the first are labels


def build_sequences(
    examples: Sequence[ReasoningExample],
    stages: Sequence[int],
    curriculum: Curriculum,
    encode_prompts: EncodeBatch,
    encode: EncodeBatch,
    end_of_thought_id: int,
    eos_token_id: int,
) -> list[ThoughtSequence]:
    """Lay out one example per row at its stage."""
    prompts = encode_prompts([example.question for example in examples])
    pieces = [
        [step + "\n" for step in curriculum.steps_left(example.steps, stage)] + ["### " + example.answer]
        for example, stage in zip(examples, stages, strict=True)
    ]
    num_latents = [curriculum.num_latents(stage) for stage in stages]
    return lay_out(prompts, num_latents, pieces, encode, end_of_thought_id, eos_token_id)


def lay_out(
    prompts: Sequence[list[int]],
    num_latents: Sequence[int],
    pieces: Sequence[Sequence[str]],
    encode: EncodeBatch,
    end_of_thought_id: int,
    eos_token_id: int,
) -> list[ThoughtSequence]:
    """Rows of prompt tokens, latents, and the pieces of text written after them. Pieces (steps, answer) are tokenized one
    by one, as in the published code, so that the tokens of an answer do not depend on what stands before it."""
    encoded = iter(encode([piece for row in pieces for piece in row]))
    return [
        ThoughtSequence(
            prompt_ids=prompt,
            num_latents=count,
            tail_ids=[end_of_thought_id, *(token for _ in row for token in next(encoded)), eos_token_id],
        )
        for prompt, count, row in zip(prompts, num_latents, pieces, strict=True)
    ]

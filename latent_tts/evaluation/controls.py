"""Whether answers owe anything to the latents: other ones are fed in place of those that were thought.

A rollout is thought as always. Then its answer is decoded after the prompt and

    zero        as many zeros as it had thoughts
    shuffle     the thoughts that the rollout of the same number had on another problem: the one before it in the data
    truncate    its own first t thoughts, none for t = 0

So what differs from the run without a control is what the answer is decoded after, and nothing else: passes, answer tokens and
random streams are the same. The greedy answer is controlled alike. The other problem is the nearest one before with another
question (for the first ones the nearest behind), whatever the batch, and a set may grow. A record keeps which problem it was:
where after a change of the data it is another one, the record is drawn anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.rollouts import Rollouts
from latent_tts.engine.state import ThoughtState
from latent_tts.errors import UserError
from latent_tts.problems import Problem, question_key

ControlName = Literal["zero", "shuffle", "truncate"]


@dataclass
class LatentControl:
    """See the module's docstring.

    Raises:
        UserError: An unknown control, or a number of thoughts that does not belong to it.
    """

    name: ControlName
    truncate_after: int | None = None
    """Thoughts that are left, of `truncate`."""
    others: Mapping[str, Problem] = field(default_factory=dict)
    """By problem id the one whose thoughts are fed, of `shuffle`: `other_problems` makes it."""

    def __post_init__(self) -> None:
        if self.name not in get_args(ControlName):
            raise UserError(f"latent_control must be one of {', '.join(get_args(ControlName))}, got {self.name!r}.")
        if (self.name == "truncate") != (self.truncate_after is not None):
            raise UserError(
                "latent_control truncate and truncate_after belong together: give both, or neither of them."
            )

    @property
    def partners(self) -> dict[str, str]:
        """By problem id that of the one whose thoughts are fed; empty where none are."""
        return {one: other.problem_id for one, other in self.others.items()}

    def settings(self) -> dict[str, Any]:
        """What records depend on, by the names of options."""
        return {"latent_control": self.name} | (
            {} if self.truncate_after is None else {"truncate_after": self.truncate_after}
        )

    def check(self, engine: RolloutEngine) -> None:
        """Raises a ``UserError`` where an engine's rollouts have no thoughts to control."""
        most = engine.backbone.num_latents
        if not most:
            raise UserError("latent_control needs latent thoughts, and this backbone reasons in writing: leave it out.")
        if self.truncate_after is not None and not 0 <= self.truncate_after < most:
            raise UserError(
                f"truncate_after must lie between 0 and {most - 1}, got {self.truncate_after}: there are {most} thoughts."
            )

    def rollouts(
        self, engine: RolloutEngine, start: ThoughtState, problems: Sequence[Problem], num_rollouts: int, seed: int
    ) -> Rollouts:
        """N rollouts of problems whose prompts ``start`` has encoded, answered after other latents than they thought."""
        thinking = start
        if self.name == "shuffle":
            others = [self._other(problem) for problem in problems]
            thinking = engine.start([one.question for one in others], seed, [one.problem_id for one in others])
        thought = engine.rollout_from(thinking, engine.parts.whole(num_rollouts))
        answered = engine.replay(start, *self._replaced(thought.latents, thought.num_latents))
        return engine.parts.asked(answered, num_rollouts)

    def _replaced(self, latents: Tensor, num_latents: Tensor) -> tuple[Tensor, Tensor]:
        """What is fed, (B, N, T, D) and (B, N), in place of these."""
        if self.name == "zero":
            return torch.zeros_like(latents), num_latents
        if self.truncate_after is None:
            return latents, num_latents
        kept = torch.arange(latents.shape[2], device=latents.device) < self.truncate_after  # (T,)
        return latents * kept.unsqueeze(-1), num_latents.clamp(max=self.truncate_after)

    def _other(self, problem: Problem) -> Problem:
        if problem.problem_id not in self.others:
            raise UserError(
                f"latent_control shuffle knows no other problem for {problem.problem_id}: give it "
                "others=other_problems(problems)."
            )
        return self.others[problem.problem_id]


def control_of(name: ControlName | None, truncate_after: int | None) -> LatentControl | None:
    """The control that options name, if any.

    Raises:
        UserError: They do not fit each other.
    """
    if name is None and truncate_after is not None:
        raise UserError("latent_control truncate and truncate_after belong together: give both, or neither of them.")
    return None if name is None else LatentControl(name, truncate_after)


def other_problems(problems: Iterable[Problem]) -> dict[str, Problem]:
    """By problem id the nearest problem before it with another question; for the first ones the nearest behind.

    Raises:
        UserError: All ask the same.
    """
    others: dict[str, Problem] = {}
    first: list[Problem] = []  # those that have none before them
    before: Problem | None = None  # the nearest with another question than `latest`
    latest: Problem | None = None
    for problem in problems:
        if latest is not None and question_key(latest.question) != question_key(problem.question):
            before = latest
            others |= {one.problem_id: problem for one in first}
            first = []
        if before is None:
            first.append(problem)
        else:
            others[problem.problem_id] = before
        latest = problem
    if first:
        raise UserError("latent_control shuffle needs problems that differ: there is but one question.")
    return others

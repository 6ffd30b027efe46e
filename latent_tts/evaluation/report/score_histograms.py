"""Scores of the rollouts that are right, and of those that are wrong."""

from __future__ import annotations

from array import array

from latent_tts.evaluation.records import Record


class ScoreSamples:
    """Scores of wrong and of right rollouts, each less the mean of its problem; none without a reward model.

    Only differences between the rollouts of a problem choose among them: the level of the problem would hide what counts. A
    rollout's score is the sum of its step scores, as best-of-N takes it.

    Args:
        most: Rollouts that are kept; those of later problems are left out.
    """

    def __init__(self, most: int = 1_000_000) -> None:
        self.most = most
        self.wrong, self.right = array("d"), array("d")

    def add(self, record: Record) -> None:
        """Adds the rollouts of a problem."""
        scored = [rollout for rollout in record.rollouts if rollout.step_scores]
        if not scored or len(self.wrong) + len(self.right) >= self.most:
            return
        scores = [sum(rollout.step_scores or ()) for rollout in scored]
        mean = sum(scores) / len(scores)
        for rollout, score in zip(scored, scores, strict=True):
            (self.right if rollout.correct else self.wrong).append(score - mean)

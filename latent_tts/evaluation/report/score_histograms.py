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
        self._counts = array("L")  # wrong and right rollouts of each problem

    @property
    def is_full(self) -> bool:
        """Whether as many rollouts are kept as may be; the last problem's are kept all."""
        return len(self.wrong) + len(self.right) >= self.most

    def add(self, record: Record) -> None:
        """Adds the rollouts of a problem."""
        scored = [rollout for rollout in record.rollouts if rollout.step_scores]
        if not scored or self.is_full:
            return
        scores = [sum(rollout.step_scores or ()) for rollout in scored]
        mean = sum(scores) / len(scores)
        for rollout, score in zip(scored, scores, strict=True):
            (self.right if rollout.correct else self.wrong).append(score - mean)
        num_right = sum(rollout.correct for rollout in scored)
        self._counts.extend((len(scored) - num_right, num_right))

    def extend(self, later: ScoreSamples) -> None:
        """Adds the problems that follow, as far as there is room."""
        wrong = right = 0
        for num_wrong, num_right in zip(later._counts[::2], later._counts[1::2], strict=True):
            if self.is_full:
                return
            self.wrong.extend(later.wrong[wrong : wrong + num_wrong])
            self.right.extend(later.right[right : right + num_right])
            self._counts.extend((num_wrong, num_right))
            wrong, right = wrong + num_wrong, right + num_right

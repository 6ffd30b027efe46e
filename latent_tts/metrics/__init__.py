"""Metrics of rollouts and of reward models: thin torchmetrics classes over pure functions, exact over ranks."""

from latent_tts.metrics.accuracy import Accuracy, MeanCost, PairedDifference
from latent_tts.metrics.calibration import ScoreCalibration
from latent_tts.metrics.correlation import StepScoreCorrelation
from latent_tts.metrics.coverage import Coverage, coverage_at
from latent_tts.metrics.diversity import Diversity, step_diversity
from latent_tts.metrics.head_room import head_room_recovered
from latent_tts.metrics.intervals import Interval, difference_bounds, share_bounds
from latent_tts.metrics.invalid_answers import InvalidAnswerRate
from latent_tts.metrics.ranking import PairwiseRankingAccuracy, RecallAt1

__all__ = [
    "Accuracy",
    "Coverage",
    "Diversity",
    "Interval",
    "InvalidAnswerRate",
    "MeanCost",
    "PairedDifference",
    "PairwiseRankingAccuracy",
    "RecallAt1",
    "ScoreCalibration",
    "StepScoreCorrelation",
    "coverage_at",
    "difference_bounds",
    "head_room_recovered",
    "share_bounds",
    "step_diversity",
]

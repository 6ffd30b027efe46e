"""Metrics of rollouts and of reward models: thin torchmetrics classes over pure functions, exact over ranks."""

from latent_tts.metrics.accuracy import AggregationAccuracy
from latent_tts.metrics.bootstrap import BootstrapIntervals, BootstrapResult, Interval, poisson_weights
from latent_tts.metrics.calibration import ScoreCalibration
from latent_tts.metrics.correlation import StepScoreCorrelation
from latent_tts.metrics.coverage import Coverage, coverage_at
from latent_tts.metrics.diversity import Diversity, step_diversity
from latent_tts.metrics.head_room import head_room_recovered
from latent_tts.metrics.invalid_answers import InvalidAnswerRate
from latent_tts.metrics.ranking import PairwiseRankingAccuracy, RecallAt1

__all__ = [
    "AggregationAccuracy",
    "BootstrapIntervals",
    "BootstrapResult",
    "Coverage",
    "Diversity",
    "Interval",
    "InvalidAnswerRate",
    "PairwiseRankingAccuracy",
    "RecallAt1",
    "ScoreCalibration",
    "StepScoreCorrelation",
    "coverage_at",
    "head_room_recovered",
    "poisson_weights",
    "step_diversity",
]

"""Aggregations of N rollouts into one answer: one algorithm a file, one signature, one result type."""

from latent_tts.aggregation.base import Aggregate, Aggregation, StepReduction, check_ks, k_grid, reduce_step_scores
from latent_tts.aggregation.best_of_n import BestOfN
from latent_tts.aggregation.hybrid import Hybrid
from latent_tts.aggregation.majority_voting import MajorityVoting
from latent_tts.aggregation.weighted_voting import WeightedVoting

__all__ = [
    "Aggregate",
    "Aggregation",
    "BestOfN",
    "Hybrid",
    "MajorityVoting",
    "StepReduction",
    "WeightedVoting",
    "check_ks",
    "k_grid",
    "reduce_step_scores",
]

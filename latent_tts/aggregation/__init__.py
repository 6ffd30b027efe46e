"""Aggregations of N rollouts into one answer: one algorithm a file, which says who wins and how often that is right."""

from latent_tts.aggregation.adaptive_voting import AdaptiveVoting
from latent_tts.aggregation.base import (
    Aggregate,
    Aggregation,
    Named,
    StepReduction,
    check_ks,
    k_grid,
    reduce_step_scores,
)
from latent_tts.aggregation.best_of_n import BestOfN
from latent_tts.aggregation.hybrid import Hybrid
from latent_tts.aggregation.majority_voting import MajorityVoting
from latent_tts.aggregation.weighted_voting import WeightedVoting

AGGREGATIONS: dict[str, type[Aggregation]] = {
    MajorityVoting.family: MajorityVoting,
    BestOfN.family: BestOfN,
    WeightedVoting.family: WeightedVoting,
    Hybrid.family: Hybrid,
    AdaptiveVoting.family: AdaptiveVoting,
}
"""The algorithms by the names that options give them; help, results and reports find them here."""

__all__ = [
    "AGGREGATIONS",
    "AdaptiveVoting",
    "Aggregate",
    "Aggregation",
    "BestOfN",
    "Hybrid",
    "MajorityVoting",
    "Named",
    "StepReduction",
    "WeightedVoting",
    "check_ks",
    "k_grid",
    "reduce_step_scores",
]

"""Ways to spend a budget of latent thoughts, most of them guided by a reward model: one algorithm a file, one result type."""

from latent_tts.search.adaptive_rollouts import AdaptiveRollouts
from latent_tts.search.base import Search, SearchResult, StepScorer
from latent_tts.search.beam_search import BeamSearch
from latent_tts.search.particle_filtering import ParticleFiltering

SEARCHES: dict[str, type[Search]] = {
    BeamSearch.family: BeamSearch,
    ParticleFiltering.family: ParticleFiltering,
    AdaptiveRollouts.family: AdaptiveRollouts,
}
"""The algorithms by the names that options give them; help, results and reports find them here."""

__all__ = ["SEARCHES", "AdaptiveRollouts", "BeamSearch", "ParticleFiltering", "Search", "SearchResult", "StepScorer"]

"""Reward-guided searches over latent thoughts: one algorithm a file, one signature, one result type."""

from latent_tts.search.base import Search, SearchResult, StepScorer
from latent_tts.search.beam_search import BeamSearch
from latent_tts.search.particle_filtering import ParticleFiltering

SEARCHES: dict[str, type[BeamSearch] | type[ParticleFiltering]] = {
    "beam_search": BeamSearch,
    "particle_filtering": ParticleFiltering,
}
"""The algorithms by the names that options give them."""

__all__ = ["SEARCHES", "BeamSearch", "ParticleFiltering", "Search", "SearchResult", "StepScorer"]

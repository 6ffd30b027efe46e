"""Reward-guided searches over latent thoughts: one algorithm a file, one signature, one result type."""

from latent_tts.search.base import Search, SearchResult, StepScorer
from latent_tts.search.beam_search import BeamSearch
from latent_tts.search.particle_filtering import ParticleFiltering

SEARCHES: dict[str, type[Search]] = {
    BeamSearch.family: BeamSearch,
    ParticleFiltering.family: ParticleFiltering,
}
"""The algorithms by the names that options give them; help, results and reports find them here."""

__all__ = ["SEARCHES", "BeamSearch", "ParticleFiltering", "Search", "SearchResult", "StepScorer"]

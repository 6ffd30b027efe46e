"""The latent reward model (LatentRM): a score for every prefix of a chain of latent thoughts."""

from latent_tts.reward.loading import load_reward_model
from latent_tts.reward.model import LatentRewardModel
from latent_tts.reward.state import RewardState

__all__ = ["LatentRewardModel", "RewardState", "load_reward_model"]

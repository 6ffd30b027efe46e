"""Latent reasoning models: COCONUT, CODI and CoLaR on any Hugging Face causal LM."""

from latent_tts.backbones.base import LatentBackbone
from latent_tts.backbones.coconut import Coconut
from latent_tts.backbones.codi import Codi
from latent_tts.backbones.colar import Colar
from latent_tts.backbones.cot import Cot
from latent_tts.backbones.kinds import KINDS
from latent_tts.backbones.loading import load_backbone

__all__ = ["KINDS", "Coconut", "Codi", "Colar", "Cot", "LatentBackbone", "load_backbone"]

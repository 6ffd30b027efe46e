"""Parallel test-time scaling of latent reasoning models: the core, in plain PyTorch.

    from latent_tts import load_backbone, load_reward_model, RolloutEngine, solve

The names are imported on first use, so that ``import latent_tts.errors`` does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latent_tts.backbones.loading import load_backbone
    from latent_tts.engine.engine import RolloutEngine
    from latent_tts.engine.rollouts import Rollouts
    from latent_tts.evaluation.solve import solve
    from latent_tts.reward import load_reward_model

# the one place that names the version: setup.cfg reads it here, and it needs no installation
__version__ = "0.2.0"

__all__ = ["RolloutEngine", "Rollouts", "load_backbone", "load_reward_model", "solve"]

_HOMES = {
    "load_backbone": "latent_tts.backbones.loading",
    "load_reward_model": "latent_tts.reward",
    "RolloutEngine": "latent_tts.engine.engine",
    "Rollouts": "latent_tts.engine.rollouts",
    "solve": "latent_tts.evaluation.solve",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

"""Lightning data modules: problems for evaluation, and training data."""

from datamodules.reasoning_steps_data import ReasoningStepsDataModule
from datamodules.rollout_data import RolloutDataModule

__all__ = ["ReasoningStepsDataModule", "RolloutDataModule"]

"""Every training by the name of its class: what `train.py --help` lists, and what a checkpoint may say that it is of."""

from __future__ import annotations

from lightning_modules.chain_of_thought_module import ChainOfThoughtModule
from lightning_modules.coconut_module import CoconutModule
from lightning_modules.codi_module import CodiModule
from lightning_modules.colar_grpo_module import ColarGRPOModule
from lightning_modules.colar_module import ColarModule
from lightning_modules.latent_rm_module import LatentRMModule
from lightning_modules.training_module import TrainingModule

TRAININGS: dict[str, type[TrainingModule]] = {
    cls.__name__: cls
    for cls in (CoconutModule, CodiModule, ColarModule, ColarGRPOModule, ChainOfThoughtModule, LatentRMModule)
}

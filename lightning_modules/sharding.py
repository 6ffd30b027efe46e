"""Trainings whose gradients and optimizer state are shared out over the processes: `--trainer.strategy fsdp` (torch's FSDP2).

    between steps      each process holds its share of weights, gradients and AdamW's momenta
    within a step      the weights are gathered once, by blocks, stay for all passes forward and backward, and are let go
    within validation  the weights are gathered once, before the first batch

A thought is a pass: gathering the weights for each would send them T + 2 times forward and back, and processes whose batches
think for longer than others' would wait for partners that never come. So a step gathers once, whatever its passes are. A process
needs room for the whole weights and for 1 / processes of gradients and momenta: of the 16 bytes a weight in float32, 4 + 12 /
processes within a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from latent_tts.errors import UserError


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 over all processes; a checkpoint is one file with whole weights, as any training's."""

    strategy_name = "fsdp"

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def offer_sharding() -> None:
    """Lets Lightning's trainer know the strategy by the name `fsdp`, in place of its own, which takes no CPU and no own loops."""
    StrategyRegistry.register(
        ShardedStrategy.strategy_name, ShardedStrategy, "Shared gradients and momenta", override=True
    )
    names = FSDPStrategy.get_registered_strategies()  # what Lightning refuses on a CPU
    if ShardedStrategy.strategy_name in names:
        names.remove(ShardedStrategy.strategy_name)


def shard(model: nn.Module, mesh: Any) -> None:
    """Shares a model out: every transformer block by itself, and all that is left together.

    Raises:
        UserError: It has no blocks that can be told, or weights that are not trained.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise UserError("--trainer.strategy fsdp finds no transformer blocks in this model: give auto or ddp.")
    if any(not parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "--trainer.strategy fsdp trains all weights, and some of this model's are frozen: give --trainer.strategy ddp."
        )
    for module in (*blocks, model):
        sharded: Any = fully_shard(module, mesh=mesh, reshard_after_forward=False)
        sharded.set_reshard_after_backward(False, recurse=False)


def shards(model: nn.Module) -> list[FSDPModule]:
    """The parts that were shared out, the whole first; none where the model was not."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def gather(model: nn.Module) -> None:
    """Brings the whole weights to every process, which has to ask for it together with the others."""
    with torch.inference_mode(False), torch.no_grad():  # what is gathered is trained on later
        for part in shards(model):
            part.unshard()


def release(model: nn.Module) -> None:
    """Leaves each process its share."""
    for part in shards(model):
        part.reshard()


def gradients(model: nn.Module) -> list[Tensor]:
    """What there is of gradients in this process."""
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in found]


def gradient_norm(module: LightningModule, found: list[Tensor]) -> Tensor:
    """The norm of all gradients as one vector, (), on the device. Every process of a training that is shared out has to ask.

    Args:
        module: That is trained.
        found: Its gradients in this process.
    """
    norm: Tensor = torch.stack(torch._foreach_norm([gradient.float() for gradient in found])).norm()
    if not shards(module):
        return norm
    squares: Tensor = torch.as_tensor(module.trainer.strategy.reduce(norm.square(), reduce_op="sum"))
    return squares.sqrt()


def whole_weights(module: LightningModule) -> Mapping[str, Any] | None:
    """The whole weights of a training that was shared out, on rank 0; None of any other. Every process has to ask."""
    if not shards(module):
        return None
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

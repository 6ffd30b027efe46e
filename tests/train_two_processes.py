"""Run by a test: trains with two gloo processes and writes the weights. Arguments: model folder, working folder."""

import sys
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy

from tests.training import make_data, make_module, make_trainer

if __name__ == "__main__":
    model, folder = Path(sys.argv[1]), Path(sys.argv[2])
    module = make_module(model, global_batch_size=8, lr=1e-3)
    strategy = DDPStrategy(process_group_backend="gloo")
    trainer = make_trainer(max_epochs=4, limit_val_batches=0, devices=2, strategy=strategy)
    trainer.fit(module, make_data(folder, batch_size=2))
    if trainer.is_global_zero:
        torch.save(torch.cat([p.detach().flatten() for p in module.backbone.parameters()]), folder / "two.pt")

"""Run by a test: trains and validates with two gloo processes. Arguments: model folder, working folder, kind of the module."""

import sys
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy

from tests.training import MAKERS, flat_gradients, flat_weights, make_data, make_trainer

if __name__ == "__main__":
    model, folder = Path(sys.argv[1]), Path(sys.argv[2])
    module = MAKERS[sys.argv[3]](model, global_batch_size=8, lr=1e-3)
    strategy = DDPStrategy(process_group_backend="gloo")
    trainer = make_trainer(max_epochs=4, check_val_every_n_epoch=5, devices=2, strategy=strategy)
    trainer.fit(module, make_data(folder, batch_size=2))
    weights, gradients = flat_weights(module), flat_gradients(module)
    results = [trainer.validate(module, make_data(folder, 2, val_size), verbose=False)[0] for val_size in (5, 2)]
    if trainer.is_global_zero:
        torch.save({"weights": weights, "gradients": gradients, "results": results}, folder / "two.pt")

"""The curves of a training, read from its event files and from CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from transformers import GPT2Config, GPT2LMHeadModel

from callbacks.training_curves import TrainingSpeed, ValidationAnswers, as_table
from commands.curves import RunCurves
from latent_tts.attention.passes import decoder_pass
from latent_tts.training.grpo import GRPO, LogProbs, Policy, clipped_share, entropies
from tests.test_colar_module import colar, grpo, model, rewarding  # noqa: F401
from tests.training import make_data, make_module, make_trainer, write_tiny_model


class Gradients(Callback):
    """The norm of the gradients that the optimizer gets, parameter by parameter."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        squares = [float(p.grad.double().pow(2).sum()) for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(sum(squares) ** 0.5)


def fitted(folder: Path, module: Any, data_module: Any, **options: Any) -> list[dict[str, str]]:
    """Trains with the curves of `train.py` and a CSV; returns the rows of the CSV."""
    table = CSVLogger(folder / "csv", name="", version="")
    callbacks = [
        LearningRateMonitor("step"),
        TrainingSpeed(),
        ValidationAnswers(count=3),
        *options.pop("callbacks", []),
    ]
    curves = RunCurves(folder, metrics=[module.monitor])
    make_trainer(logger=[curves, table], callbacks=callbacks, **options).fit(module, data_module)
    with open(folder / "csv" / "metrics.csv") as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row[name]]


def test_a_training_logs_norm_speed_stage_answers_and_hyperparameters(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module, seen = make_module(write_tiny_model(tmp_path / "model")), Gradients()
    rows = fitted(tmp_path, module, make_data(tmp_path, batch_size=8), max_epochs=2, callbacks=[seen])
    assert column(rows, "train/gradient_norm") == pytest.approx(seen.norms, rel=1e-4)
    assert len(seen.norms) == 4 and min(seen.norms) > 0
    assert column(rows, "stage") == [0, 0, 1, 1] and min(column(rows, "train/examples_per_second")) > 0

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = events.Tags()
    scalars = {"train/loss", "train/gradient_norm", "stage", "val/accuracy", "val/loss", "lr-AdamW"}
    scalars |= {"train/examples_per_second", "train/positions_per_second"}
    assert scalars <= set(tags["scalars"])
    answers = events.Tensors("val/answers/text_summary")
    assert [answer.step for answer in answers] == [2, 4]
    assert answers[-1].tensor_proto.string_val[0].decode().count("\n| Ann has") == 3
    plugin = events.PluginTagToContent("hparams")
    assert b"val/final_accuracy" in plugin["_hparams_/experiment"]


def test_the_norm_is_that_before_clipping(tmp_path: Path) -> None:
    path, norms = write_tiny_model(tmp_path / "model"), []
    for name, clip in (("free", None), ("clipped", 1e-3)):
        (tmp_path / name).mkdir()
        rows = fitted(
            tmp_path / name, make_module(path), make_data(tmp_path, batch_size=8), max_steps=1, gradient_clip_val=clip
        )
        norms.append(column(rows, "train/gradient_norm"))
    assert norms[0] == norms[1] and norms[0][0] > 1e-3


@pytest.mark.slow
def test_reinforcement_logs_reward_entropies_clipped_share_divergence_and_rate(
    colar: Path,  # noqa: F811
    rewarding: None,  # noqa: F811
    tmp_path: Path,
) -> None:
    module = grpo(colar, grpo=GRPO(4, 2, kl_weight=0.1))
    rows = fitted(tmp_path, module, make_data(tmp_path, batch_size=8), max_epochs=1)
    names = ["reward", "entropy", "thought_entropy", "clipped_share", "kl", "learned_share", "gradient_norm"]
    assert all(column(rows, f"train/{name}") for name in names) and column(rows, "lr-AdamW")
    assert all(0 <= share <= 1 for share in column(rows, "train/clipped_share"))


def test_entropies_are_those_of_the_distributions() -> None:
    even, certain = torch.full((1, 4), 0.25).log(), torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf]])
    normal = torch.distributions.Normal(torch.zeros(5, 2), torch.ones(5, 2))
    none = LogProbs(torch.empty(0), torch.empty(0))
    thoughts, tokens = entropies(Policy(none, normal, torch.cat([even, certain])))
    # A standard normal number has entropy ln(2 pi e) / 2 = 1.4189.
    assert thoughts.tolist() == pytest.approx([2 * 1.41894] * 5, abs=1e-4)
    assert tokens.tolist() == pytest.approx([1.38629, 0], abs=1e-4)


def test_the_clipped_share_counts_ratios_beyond_the_clip_on_either_side() -> None:
    new = LogProbs(torch.tensor([[1.1, 1.3], [0.7, 1.0]]).log(), torch.tensor([0.9, 1.21]).log())
    old = LogProbs(torch.zeros(2, 2), torch.zeros(2))
    assert clipped_share(new, old, 0.2).item() == pytest.approx(3 / 6)
    assert clipped_share(old, old, 0.2).item() == 0


def test_speeds_count_examples_and_positions_of_all_processes_and_no_validation() -> None:
    now, logged = [0.0], []
    speed: Any = TrainingSpeed(lambda: now[0])
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.append((step, *metrics.values())))
    decoder = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    module = torch.nn.ModuleDict({"backbone": decoder})

    def passes(rows: int, columns: int) -> None:
        decoder_pass(decoder, torch.zeros(rows, columns, 4), torch.arange(columns).expand(rows, -1))

    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=7))
    connector = SimpleNamespace(should_update_logs=False)
    run = SimpleNamespace(world_size=2, loggers=[logger], fit_loop=loop, _logger_connector=connector)
    speed.on_train_start(run, module)
    for due in (False, True):
        now[0] += 4
        connector.should_update_logs = due
        passes(10, 8)
        speed.on_train_batch_end(run, module, None, [0] * 10, 0)
    now[0] += 1000
    passes(2, 3)
    speed.on_validation_end(run, module)
    now[0] += 1
    passes(3, 5)
    passes(3, 1)
    speed.on_train_batch_end(run, module, None, SimpleNamespace(questions=["a"] * 3), 1)
    # Two processes: 2 x 20 examples and 2 x 160 positions in 8 s, then 2 x 3 examples and 2 x (15 + 3) positions in one.
    assert logged == [(7, 5.0, 40.0), (7, 6.0, 36.0)]
    speed.on_train_end(run, module)
    passes(1, 1)
    assert speed.positions == 0


def test_what_a_model_writes_cannot_break_the_table_of_answers() -> None:
    assert as_table([("1 | 2?", "3", " 4\n5")]).splitlines()[2:] == [r"| 1 \| 2? | 3 | 4 5 |"]

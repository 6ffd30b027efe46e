"""Training: the loss does not depend on how the global batch is split, a resumed run equals an uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from callbacks.export import Export, ExportModel
from commands.export import export_run
from datamodules.reasoning_steps_data import ReasoningStepsDataModule
from latent_tts.backbones.coconut import Coconut
from latent_tts.backbones.loading import load_backbone
from latent_tts.backbones.scratch import ScratchConfig, write_scratch_model
from latent_tts.backbones.training import load_for_training
from latent_tts.errors import UserError
from latent_tts.training.coconut_curriculum import Curriculum
from lightning_modules.trainer_fit import accumulated_batches
from tests.training import (
    ONE_EPOCH_A_STAGE,
    StopAfter,
    addition,
    flat_weights,
    make_data,
    make_module,
    make_trainer,
    write_tiny_model,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("scratch") / "model")


def trained(model: Path, data: Path, batch_size: int, epochs: int = 4, **options) -> torch.Tensor:
    module = make_module(model, **options)
    make_trainer(max_epochs=epochs, limit_val_batches=0).fit(module, make_data(data, batch_size))
    return flat_weights(module)


def test_splitting_the_global_batch_changes_nothing(model, tmp_path):
    """8 at once and 4 x 2 accumulated: the rows differ in length, so a mean of means would differ. The order of rows
    within a global batch differs with the micro batch, and so does only the rounding; SGD-like steps keep it small."""
    whole = trained(model, tmp_path, batch_size=8, global_batch_size=16, lr=1e-3)
    split = trained(model, tmp_path, batch_size=2, global_batch_size=16, lr=1e-3)
    start = flat_weights(make_module(model))
    assert (whole - start).abs().max() > 1e-3
    torch.testing.assert_close(split, whole, atol=2e-4, rtol=0)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resuming_at_an_epoch_gives_bitwise_the_same_weights(model, tmp_path, stop_after):
    """With mixing of stages, optimizer resets, warm-up and decay, stopped in each stage."""
    options = {
        "warmup_steps": 2,
        "schedule": "linear",
        "decay_share": 0.5,
        "curriculum": Curriculum(1, 1, 2, 1, uniform_prob=0.5),
    }
    straight = trained(model, tmp_path, 8, epochs=5, **options)

    keep = ModelCheckpoint(tmp_path / f"kept-{stop_after}", save_last=True, save_top_k=0, save_on_train_epoch_end=True)
    stop = StopAfter(stop_after)
    trainer = make_trainer(max_epochs=5, limit_val_batches=0, callbacks=[keep, stop], enable_checkpointing=True)
    trainer.fit(make_module(model, **options), make_data(tmp_path, 8))
    resumed = make_module(model, **options)
    make_trainer(max_epochs=5, limit_val_batches=0).fit(
        resumed, make_data(tmp_path, 8), ckpt_path=tmp_path / f"kept-{stop_after}" / "last.ckpt"
    )
    assert torch.equal(flat_weights(resumed), straight)


def test_dropout_of_a_resumed_epoch_is_that_of_the_uninterrupted_one(tmp_path):
    """A GPT-2 with dropout: its masks come from (seed, epoch, batch), not from the global random state."""
    model = write_tiny_model(tmp_path / "model", architecture="gpt2")
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"resid_pdrop": 0.0', '"resid_pdrop": 0.3'))
    torch.manual_seed(1)
    first = trained(model, tmp_path, 8, epochs=2)
    torch.manual_seed(2)
    again, other = trained(model, tmp_path, 8, epochs=2), trained(model, tmp_path, 8, epochs=2, seed=7)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Recorder(Callback):
    """Stage, step and size of Adam's state before every optimizer step, and the learning rate of the step."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, float]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.rows.append((pl_module.stage, len(optimizer.state), optimizer.param_groups[0]["lr"]))


def test_each_stage_starts_with_a_fresh_optimizer_and_a_warm_up(model, tmp_path):
    recorder = Recorder()
    module = make_module(model, warmup_steps=4, lr=1.0)
    make_trainer(max_epochs=3, limit_val_batches=0, callbacks=[recorder]).fit(module, make_data(tmp_path, 4))
    assert [stage for stage, _, _ in recorder.rows] == [0, 0, 1, 1, 2, 2]  # 16 examples, 8 a step, one epoch a stage
    assert [state == 0 for _, state, _ in recorder.rows] == [True, False] * 3
    assert [lr for _, _, lr in recorder.rows] == [0.25, 0.5] * 3


def test_optimizer_state_is_kept_where_it_is_asked_for(model, tmp_path):
    recorder = Recorder()
    module = make_module(model, reset="never")
    make_trainer(max_epochs=3, limit_val_batches=0, callbacks=[recorder]).fit(module, make_data(tmp_path, 8))
    assert [state == 0 for _, state, _ in recorder.rows] == [True] + [False] * 5


def test_stage_and_accuracy_are_logged_and_changes_are_printed(model, tmp_path, capsys):
    trainer = make_trainer(max_epochs=4)
    trainer.fit(make_module(model), make_data(tmp_path, 8))
    assert trainer.callback_metrics["stage"] == 3
    assert 0 <= trainer.callback_metrics["val/accuracy"] <= 1
    assert trainer.callback_metrics["val/final_accuracy"] == trainer.callback_metrics["val/accuracy"]
    printed = capsys.readouterr().out
    assert "epoch 1: stage 1 of 3, 1 latents in place of the first 1 written steps" in printed
    assert "epoch 3: stage 3 of 3, 2 latents in place of all written steps" in printed


def test_a_few_epochs_teach_the_final_stage_by_heart(model, tmp_path):
    """Validated on its own training data, a model of a few thousand weights answers without any written step."""
    data = make_data(tmp_path, 8)
    module = make_module(model, curriculum=Curriculum(1, 1, 1, 2), max_answer_tokens=12)
    trainer = make_trainer(max_epochs=60, limit_val_batches=0)
    trainer.fit(module, data)
    seen = ReasoningStepsDataModule(data.train, data.train, batch_size=8)  # type: ignore[arg-type]
    (result,) = make_trainer().validate(module, seen, verbose=False)
    assert result["val/final_accuracy"] > 0.5


def test_exported_folder_is_the_best_checkpoint(model, tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", monitor="val/final_accuracy", mode="max", save_last=True)
    export = ExportModel(str(tmp_path / "export"))
    trainer = make_trainer(max_epochs=5, callbacks=[keep, export], enable_checkpointing=True)
    trainer.fit(make_module(model), make_data(tmp_path, 8))
    exported = load_backbone(tmp_path / "export")
    assert (exported.kind, exported.num_latents) == ("coconut", ONE_EPOCH_A_STAGE.max_latents)
    best = torch.load(keep.best_model_path, weights_only=True)["state_dict"]
    assert all(torch.equal(best[f"backbone.{key}"], value) for key, value in exported.state_dict().items())

    export_run(Path(keep.best_model_path), tmp_path / "again")
    assert load_backbone(tmp_path / "again").fingerprint() == exported.fingerprint()


def test_export_in_bfloat16_halves_the_weights(model, tmp_path):
    export = ExportModel(tmp_path / "export", Export(dtype="bfloat16"))
    make_trainer(max_epochs=1, limit_val_batches=0, callbacks=[export]).fit(make_module(model), make_data(tmp_path, 8))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (model, tmp_path / "export")]
    assert sizes[1] < 0.6 * sizes[0]
    assert load_backbone(tmp_path / "export").dtype == torch.float32


def test_same_scratch_arguments_give_the_same_files(tmp_path):
    config = ScratchConfig(architecture="gpt2", hidden_size=16, num_layers=1, num_heads=2, vocab_size=280)
    for name in ("a", "b"):
        write_scratch_model(tmp_path / name, config, map(addition, range(20)))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "model.safetensors" in files
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_scratch_tokenizer_has_single_digits_and_the_published_special_tokens(model):
    tokenizer = load_backbone(model).tokenizer
    ids = tokenizer("<<12+345=357>>", add_special_tokens=False)["input_ids"]
    assert [token for token in tokenizer.convert_ids_to_tokens(ids) if token.isdigit()] == list("12345357")
    assert tokenizer.decode(ids) == "<<12+345=357>>"
    vocabulary = tokenizer.get_vocab()
    last = len(tokenizer) - 3
    assert [vocabulary[t] for t in ("<|start-latent|>", "<|end-latent|>", "<|latent|>")] == [last, last + 1, last + 2]
    assert vocabulary["<|endoftext|>"] == 0


@pytest.mark.parametrize("layout", ["gpt2", "llama"])
def test_any_causal_lm_without_thought_tokens_can_start(layout, tiny_causal_lm, tiny_tokenizer, tmp_path):
    tokenizer = tiny_tokenizer(())
    tiny_causal_lm(layout, len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = load_for_training(Coconut, str(tmp_path), num_latents=2)
    assert backbone.model.get_input_embeddings().num_embeddings == len(tokenizer) + 3
    assert backbone.training


def test_accumulation_follows_from_the_global_batch():
    """128 = 16 examples x 2 processes x 4 accumulated batches."""
    assert accumulated_batches(128, 16, 2) == 4
    with pytest.raises(UserError, match="global_batch_size 100 is not a multiple of batch_size 16 x 2"):
        accumulated_batches(100, 16, 2)


def test_missing_and_incomplete_models_are_refused(model, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        load_for_training(Coconut, str(tmp_path / "nowhere"), 2)
    from safetensors.torch import load_file, save_file

    broken = write_tiny_model(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.norm\.weight"):
        load_for_training(Coconut, str(broken), 2)

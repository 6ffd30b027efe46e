"""Training of the reward model: the same result however the global batch is split, resumed or accumulated."""

from __future__ import annotations

import inspect
import io
import math
import os
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.patches import StepPatch
from torch.utils.data._utils.pin_memory import pin_memory

from callbacks.export import ExportModel
from callbacks.reward_diagnostics import RewardDiagnostics, score_rows, scores_figure
from commands.export import export_run
from datamodules.annotated_rollout_data import AnnotatedRolloutDataModule
from latent_tts.annotation.records import AnnotatedProblem
from latent_tts.annotation.settings import AnnotationSettings
from latent_tts.annotation.writer import AnnotationWriter
from latent_tts.backbones import LatentBackbone, load_backbone
from latent_tts.errors import UserError
from latent_tts.reward import LatentRewardModel, load_reward_model
from latent_tts.reward.losses import RewardLoss
from latent_tts.training.optimization import Optimization
from lightning_modules.latent_rm_module import DEFAULT_OPTIMIZATION, LatentRMModule
from tests.test_reward import tiny_backbone
from tests.training import with_optimization

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
N, T, D, PROBLEMS = 4, 6, 32, 120
RISE_AND_FALL: dict[str, Any] = {"lr": 3e-3, "warmup_share": 0.1, "schedule": "cosine"}


def settings_of(backbone: LatentBackbone, **changes: Any) -> AnnotationSettings:
    settings = AnnotationSettings(
        backbone_fingerprint=backbone.fingerprint(),
        backbone_kind=backbone.kind,
        hidden_size=backbone.hidden_size,
        num_latents=backbone.num_latents,
        num_rollouts=N,
        num_continuations=4,
        sampler={"name": "AdditiveGaussianNoise", "sigma": 0.5},
        seed=0,
        max_answer_tokens=8,
        data="made up",
    )
    return replace(settings, **changes)


def annotated(number: int) -> AnnotatedProblem:
    """A problem whose rollouts are the better the further their latents lie along the first dimension."""
    generator = torch.Generator().manual_seed(number)
    latents = torch.randn(N, T, D, generator=generator)
    latents[..., 0] *= 4
    values = latents[..., 0].cumsum(1).sigmoid()
    correct = values[:, -1] > values[:, -1].median()
    if number % 10 == 0:
        correct = torch.zeros(N, dtype=torch.bool)
    return AnnotatedProblem(
        problem_id=f"p{number}",
        question=f"What is {number} + {number * 7 % 13}" + "?" * (number % 5),
        gold=1.0,
        latents=latents,
        num_latents=torch.tensor([T, T - 1, T, 2]),
        answers=[float(right) for right in correct.tolist()],
        correct=correct,
        values=values,
    )


def annotate(folder: Path, settings: AnnotationSettings, problems: int = PROBLEMS) -> None:
    with AnnotationWriter(folder, settings) as writer:
        for number in range(problems):
            writer.add(annotated(number))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone and its annotations."""
    return make_workplace(tmp_path_factory.mktemp("latent-rm"), "gpt2")


def make_workplace(folder: Path, architecture: str) -> Path:
    backbone = tiny_backbone(architecture)
    backbone.save_pretrained(folder / "backbone")
    annotate(folder / "annotations", settings_of(backbone))
    return folder


def fit(
    workplace: Path,
    callbacks: list[Callback] | None = None,
    data: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    ckpt_path: str | None = None,
    **trainer: Any,
) -> tuple[Trainer, LatentRMModule]:
    module = LatentRMModule(str(workplace / "backbone"), **with_optimization(model or {}, **RISE_AND_FALL))
    datamodule = AnnotatedRolloutDataModule(
        str(workplace / "annotations"), **({"batch_size": 8, "val_share": 0.25} | (data or {}))
    )
    options: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks or []),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "callbacks": callbacks,
    }
    made = Trainer(**(options | trainer))
    made.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
    return made, module


def weights_of(module: LatentRMModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.reward_model.state_dict().items()}


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value,
            other[name],
            atol=tolerance,
            rtol=tolerance,
            msg=lambda m, name=name: f"{name}: {m}",  # type: ignore[misc]
        )


def test_training_learns_to_rank_and_exports_the_best(workplace: Path, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, "best", monitor="val/recall_at_1", mode="max")
    export_best = ExportModel(str(tmp_path / "model"))
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    diagnostics = RewardDiagnostics()
    trainer, module = fit(
        workplace,
        [checkpoint, export_best, diagnostics],
        max_epochs=18,
        logger=logger,
        check_val_every_n_epoch=3,
        log_every_n_steps=1,
    )
    measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert measured["val/chance"] < 0.6 and measured["val/coverage"] > 0.8
    assert measured["val/ranking_accuracy"] > 0.75
    assert float(checkpoint.best_model_score) > measured["val/chance"] + 0.1  # type: ignore[arg-type]
    exported = load_reward_model(tmp_path / "model")
    state = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]
    assert torch.equal(exported.classifier.weight, state["reward_model.classifier.weight"])  # type: ignore[arg-type]
    export_run(Path(checkpoint.best_model_path), tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "model" / "model.safetensors"
    ).read_bytes()
    assert tensorboard_tags(tmp_path / "tb") >= {
        "train/loss",
        "val/loss",
        "val/recall_at_1",
        "val/scores",
        "val/steps",
        "val/calibration",
        "scores/step_1/right",
    }


def tensorboard_tags(folder: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag for kind in ("scalars", "images", "histograms") for tag in events.Tags()[kind]}


@pytest.mark.parametrize(
    "model",
    [
        {"loss": "bce"},
        {"labels": "final", "targets": "normalised"},
        {"targets": "one_hot", "head": "mlp"},
        {"frozen": True, "head": "attention"},
    ],
)
def test_every_variant_trains(workplace: Path, model: dict[str, Any]) -> None:
    before = LatentRMModule(str(workplace / "backbone"), **model)
    _, module = fit(workplace, model=model, max_epochs=1, precision="bf16-mixed")
    moved = {name for name, value in weights_of(module).items() if not torch.equal(value, weights_of(before)[name])}
    assert any(name.startswith("classifier") for name in moved)
    assert any(name.startswith("transformer") for name in moved) != bool(model.get("frozen"))


def test_a_trained_reward_model_is_trained_further(workplace: Path, tmp_path: Path) -> None:
    """It starts from the folder's weights; what does not belong to the backbone, or has another head, is refused."""
    backbone, folder = load_backbone(str(workplace / "backbone")), tmp_path / "trained"
    LatentRewardModel.from_backbone(backbone, "mlp", seed=5).save_pretrained(folder)
    options: dict[str, Any] = {"reward_model": str(folder), "head": "mlp"}
    start, trained = weights_of(LatentRMModule(str(workplace / "backbone"), **options)), load_reward_model(folder)
    assert_same_weights(start, trained.state_dict(), tolerance=0.0)
    _, module = fit(workplace, model=options, max_epochs=1)
    assert all(
        not torch.equal(value, start[name])
        for name, value in weights_of(module).items()
        if name.endswith("c_fc.weight")
    )
    frozen = LatentRMModule(str(workplace / "backbone"), **options, frozen=True)
    assert {name.split(".")[0] for name, p in frozen.reward_model.named_parameters() if p.requires_grad} == {
        "classifier"
    }
    with pytest.raises(UserError, match="has a mlp head, not linear"):
        LatentRMModule(str(workplace / "backbone"), reward_model=str(folder))
    tiny_backbone("gpt2", num_latents=3).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="was trained for another backbone"):
        LatentRMModule(str(tmp_path / "other"), **options)


class SaveGradients(Callback):
    """Writes the gradient of the last optimizer step, as the optimizer saw it, and what was measured."""

    def __init__(self, file: str) -> None:
        self.file = file

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.gradients = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            metrics = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
            torch.save((self.gradients, metrics), self.file)


ONE_STEP: dict[str, Any] = {"max_steps": 1, "gradient_clip_val": 0.1}


def assert_same_step(one: Path, other: Path) -> None:
    (expected, expected_metrics), (found, found_metrics) = torch.load(one), torch.load(other)
    assert len(expected_metrics) > 5 and expected_metrics.keys() == found_metrics.keys()
    for name, value in expected_metrics.items():
        torch.testing.assert_close(found_metrics[name], value, atol=1e-3, rtol=1e-3)
    assert expected.keys() == found.keys() and len(expected) > 10
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")  # type: ignore[misc]
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-3


def test_accumulated_batches_are_one_batch(workplace: Path, tmp_path: Path) -> None:
    """All problems in one batch, and in 4 micro batches whose numbers of valid steps differ: the same clipped gradient."""
    size = training_size(workplace) // 4 * 4
    fit(workplace, [SaveGradients(str(tmp_path / "whole"))], {"batch_size": size}, **ONE_STEP)
    fit(
        workplace,
        [SaveGradients(str(tmp_path / "parts"))],
        {"batch_size": size // 4},
        {"global_batch_size": size},
        **ONE_STEP,
    )
    assert_same_step(tmp_path / "whole", tmp_path / "parts")


def training_size(workplace: Path, leave_out_uniform: bool = True) -> int:
    data = AnnotatedRolloutDataModule(
        str(workplace / "annotations"), val_share=0.25, leave_out_uniform=leave_out_uniform
    )
    data.setup("fit")
    assert data.train_problems is not None
    return len(data.train_problems)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(workplace: Path, tmp_path: Path) -> None:
    every = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, enable_version_counter=False)
    _, whole = fit(workplace, [every])
    _, resumed = fit(workplace, ckpt_path=str(tmp_path / "epoch=0.ckpt"))
    assert_same_weights(weights_of(whole), weights_of(resumed), 0.0)


def test_beside_a_gpu_every_tensor_of_a_batch_is_pinned(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = AnnotatedRolloutDataModule(str(workplace / "annotations"), val_share=0.0)
    data.setup("fit")
    assert not data.train_dataloader().pin_memory
    batch = next(iter(data.train_dataloader()))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 0)  # pinned tensors are copies
    pinned = pin_memory(batch)  # what torch's loader does with a batch
    for field in fields(batch):
        before, after = getattr(batch, field.name), getattr(pinned, field.name)
        if isinstance(before, torch.Tensor):
            assert after is not before
            torch.testing.assert_close(after, before.to(after.dtype), equal_nan=True)
        else:
            assert after == before
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert data.train_dataloader().pin_memory


@pytest.mark.parametrize("option", [{"num_workers": -1}, {"memory_limit_gb": math.nan}, {"memory_limit_gb": math.inf}])
def test_data_options_out_of_their_range_are_named(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(option))} must be"):
        AnnotatedRolloutDataModule("annotations", **option)


def test_uniform_problems_are_left_out_of_training_only(workplace: Path) -> None:
    folder = str(workplace / "annotations")
    for leave_out, leave_out_val in ((True, False), (False, True)):
        options = {"leave_out_uniform": leave_out, "leave_out_uniform_val": leave_out_val}
        data = AnnotatedRolloutDataModule(folder, val_share=0.25, **options)  # type: ignore[arg-type]
        data.setup("fit")
        for problems, left_out in ((data.train_problems, leave_out), (data.val_problems, leave_out_val)):
            assert problems is not None
            uniform = [not batch.correct.any() for batch in (problems[[i]] for i in range(len(problems)))]
            assert any(uniform) != left_out


def test_problems_longer_than_the_positions_are_counted_and_left_out(workplace: Path, tmp_path: Path) -> None:
    os.symlink(workplace / "backbone", tmp_path / "backbone")
    with AnnotationWriter(tmp_path / "annotations", settings_of(tiny_backbone())) as writer:
        for number in range(1, 10):
            writer.add(annotated(number))
        writer.add(replace(annotated(11), question="What is " + "17 + " * 60 + "1?"))
    with pytest.warns(UserWarning, match=r"1 of 10 problems of .* are left out, such as p11: .* 128 positions"):
        _, module = fit(tmp_path, data={"val_share": 0.0, "batch_size": 3}, max_epochs=1)
    data = module.trainer.datamodule  # type: ignore[attr-defined]
    assert len(data.train_problems) == 9 and data.train_dataloader() is not None


def test_scores_that_are_no_numbers_end_the_training(workplace: Path) -> None:
    with pytest.raises(UserError, match="scores that are no finite numbers"):
        fit(workplace, model={"optimization": Optimization(lr=1e30)})


def test_validation_without_values_logs_what_can_be_known(workplace: Path, tmp_path: Path) -> None:
    """Recall@1 needs no Monte-Carlo values: an annotation without any may be validated on."""
    with AnnotationWriter(tmp_path / "val", settings_of(tiny_backbone(), num_continuations=0)) as writer:
        for number in range(200, 210):
            problem = annotated(number)
            writer.add(replace(problem, values=torch.full_like(problem.values, float("nan"))))
    trainer, _ = fit(workplace, data={"val_folder": str(tmp_path / "val")}, max_epochs=1)
    assert "val/recall_at_1" in trainer.callback_metrics and "val/loss" not in trainer.callback_metrics


def test_every_metric_that_is_logged_is_declared(workplace: Path) -> None:
    trainer, module = fit(workplace, max_epochs=1)
    assert set(trainer.callback_metrics) <= set(module.logged_metrics)


def test_a_checkpoint_is_loaded_with_its_options(workplace: Path, tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
    options = {"head": "mlp", "loss": "bce", "labels": "final", "seed": 3}
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    _, module = fit(workplace, [kept], model=options, max_epochs=1, logger=logger)
    loaded = LatentRMModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert_same_weights(weights_of(module), weights_of(loaded), 0.0)
    assert loaded.reward_loss == RewardLoss("bce", labels="final") and loaded.reward_model.head_name == "mlp"
    logged = (tmp_path / "tb" / "hparams.yaml").read_text()
    assert "head: mlp" in logged and "loss: bce" in logged


def test_the_published_recipe_is_the_published_training() -> None:
    """METHOD: AdamW lr 1e-4, cosine, warm-up 0.1, 30 epochs, 256 problems x 8 rollouts a step, bf16, gradient norm 1.0, dropout
    off, best by recall@1; the loss is the contrastive one with the labels themselves as weights."""
    recipe = yaml.safe_load((ROOT / "configs" / "train" / "latent-rm-published.yaml").read_text())
    trainer, options = recipe["trainer"], recipe["model"]["init_args"]
    assert (trainer["max_epochs"], trainer["gradient_clip_val"], trainer["precision"]) == (30, 1.0, "bf16-mixed")
    optimization = replace(DEFAULT_OPTIMIZATION, **options.pop("optimization"))
    assert (optimization.lr, optimization.warmup_share, optimization.schedule) == (1e-4, 0.1, "cosine")
    assert options == {
        "backbone": "ModalityDance/latent-tts-coconut",
        "dropout": 0.0,
        "global_batch_size": 256,
    }  # the rest is by default:
    defaults = {name: each.default for name, each in inspect.signature(LatentRMModule).parameters.items()}
    expected = {"head": "linear", "frozen": False, "loss": "contrastive", "targets": "raw", "labels": "continuations"}
    assert {name: defaults[name] for name in expected} == expected
    assert LatentRMModule.monitor == "val/recall_at_1"


def test_the_split_is_by_question_and_complete(workplace: Path) -> None:
    data = AnnotatedRolloutDataModule(
        str(workplace / "annotations"), val_share=0.25, leave_out_uniform=False, batch_size=1
    )
    data.setup("fit")
    assert data.train_problems is not None and data.val_problems is not None
    parts = [
        {problems[[i]].questions[0] for i in range(len(problems))}
        for problems in (data.train_problems, data.val_problems)
    ]
    assert len(parts[0]) + len(parts[1]) == PROBLEMS and not parts[0] & parts[1]
    assert 2 <= len(parts[1]) <= 20


def test_validation_problems_of_another_folder_are_not_trained_on(workplace: Path, tmp_path: Path) -> None:
    annotate(tmp_path, settings_of(tiny_backbone(), data="part of it"), problems=12)
    data = AnnotatedRolloutDataModule(str(workplace / "annotations"), val_folder=str(tmp_path), leave_out_uniform=False)
    data.setup("fit")
    assert data.train_problems is not None and data.val_problems is not None
    assert (len(data.train_problems), len(data.val_problems)) == (PROBLEMS - 12, 12)


def test_a_batch_is_padded_to_its_longest_rollout(tmp_path: Path) -> None:
    with AnnotationWriter(tmp_path, settings_of(tiny_backbone())) as writer:
        writer.add(annotated(1))
        writer.add(replace(annotated(2), num_latents=torch.tensor([3, 1, 2, 0])))
    data = AnnotatedRolloutDataModule(str(tmp_path), val_share=0.0)
    data.setup("fit")
    assert data.train_problems is not None and data.val_dataloader() == []
    batch = data.train_problems[[0, 1]]
    assert batch.latents.shape == (2, N, T, D)
    assert batch.mask.sum(-1).tolist() == [[6, 5, 6, 2], [3, 1, 2, 0]]
    assert torch.equal(batch.values.isnan(), ~batch.mask)
    assert torch.equal(batch.mask, batch.valued)


def test_batches_are_made_of_prompts_with_as_many_tokens(workplace: Path) -> None:
    """Tokens that have nothing to do with characters: the last digits of a problem's number."""
    data = AnnotatedRolloutDataModule(str(workplace / "annotations"), batch_size=4, val_share=0.5)
    data.setup("fit")
    tokens = lambda questions: [int(question.strip("?")[-1]) for question in questions]  # noqa: E731
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(prompt_lengths=tokens, max_positions=None))  # type: ignore[assignment]
    lengths = [length for batch in data.val_dataloader() for length in tokens(batch.questions)]
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 3
    spread = [max(row) - min(row) for row in (tokens(batch.questions) for batch in data.train_dataloader())]
    assert sum(spread) <= max(lengths)  # one pool of batches: neighbours in length share a batch


def test_a_loader_in_another_process_gives_the_same_batches(workplace: Path) -> None:
    batches = []
    for workers in (0, 1):
        data = AnnotatedRolloutDataModule(
            str(workplace / "annotations"), val_share=0.25, batch_size=8, num_workers=workers
        )
        data.setup("fit")
        batches.append([batch.problem_ids for batch in data.train_dataloader()])
    assert batches[0] == batches[1]


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        ({"hidden_size": 16}, {}, "hidden size 16, training is to use 32"),
        ({"num_latents": 3}, {}, "num latents 3, training is to use 6"),
        ({"backbone_fingerprint": "0" * 64}, {}, "backbone fingerprint 000"),
        ({"num_continuations": 0}, {}, "have no Monte-Carlo values"),
        ({"num_rollouts": 1}, {}, "num_rollouts 1 and a contrastive loss"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(
    workplace: Path, tmp_path: Path, changes: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    settings = settings_of(tiny_backbone(), **changes)
    n, t, d = settings.num_rollouts, settings.num_latents, settings.hidden_size
    with AnnotationWriter(tmp_path / "annotations", settings) as writer:
        for number in range(20):
            problem = annotated(number)
            writer.add(
                replace(
                    problem,
                    latents=problem.latents[:n, :t, :d],
                    num_latents=problem.num_latents[:n].clamp(max=t),
                    answers=problem.answers[:n],
                    correct=problem.correct[:n],
                    values=problem.values[:n, :t],
                )
            )
    os.symlink(workplace / "backbone", tmp_path / "backbone")
    with pytest.raises(UserError, match=message):
        fit(tmp_path, model=model, data={"leave_out_uniform": False})


def test_problems_without_a_valid_step_are_refused(workplace: Path, tmp_path: Path) -> None:
    os.symlink(workplace / "backbone", tmp_path / "backbone")
    with AnnotationWriter(tmp_path / "annotations", settings_of(tiny_backbone())) as writer:
        writer.add(replace(annotated(1), num_latents=torch.zeros(N, dtype=torch.long)))
    with pytest.raises(UserError, match="problem p1 in .* has no valid step"):
        fit(tmp_path, data={"val_share": 0.0})
    with AnnotationWriter(tmp_path / "b" / "annotations", settings_of(tiny_backbone())) as writer:
        writer.add(replace(annotated(1), values=torch.full((N, T), float("nan"))))
    os.symlink(workplace / "backbone", tmp_path / "b" / "backbone")
    with pytest.raises(UserError, match="Problem p1 has no valid step"):
        fit(tmp_path / "b", data={"val_share": 0.0, "batch_size": 1})


def test_bad_data_options_are_refused(workplace: Path, tmp_path: Path) -> None:
    annotate(tmp_path, settings_of(tiny_backbone()), problems=1)  # one problem, all wrong
    with pytest.raises(UserError, match="is left to train on"):
        AnnotatedRolloutDataModule(str(tmp_path), val_share=0.0).setup("fit")
    with pytest.raises(UserError, match="left to validate on"):
        AnnotatedRolloutDataModule(str(workplace / "annotations"), val_share=1e-6).setup("fit")
    with pytest.raises(UserError, match="val_share"):
        AnnotatedRolloutDataModule(str(tmp_path), val_share=1.0)
    with pytest.raises(UserError, match="batch_size"):
        AnnotatedRolloutDataModule(str(tmp_path), batch_size=0)
    with pytest.raises(UserError, match="max_epochs"):
        fit(workplace, max_epochs=-1)


@pytest.mark.parametrize("share_right", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 6])
def test_scores_of_right_and_wrong_rollouts_are_shares_of_their_own_in_one_figure(
    share_right: float, steps: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    step = torch.arange(steps).repeat(100)
    right = torch.arange(100).repeat_interleave(steps) < 100 * share_right
    figure = scores_figure(step, right, torch.randn(100 * steps, generator=generator))
    assert len(figure.axes) == min(steps, 2)
    for axes in figure.axes:
        spreads = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
        assert len(spreads) == (2 if share_right == 0.5 else 1)
        assert all(float(patch.get_data()[0].sum()) == pytest.approx(1.0) for patch in spreads)
    figure.savefig(io.BytesIO())


def test_score_rows_are_centred_within_problem_and_step() -> None:
    scores = torch.tensor([[[1.0, 5.0], [3.0, 9.0]]])
    rows = score_rows(scores, torch.tensor([[True, False]]), torch.tensor([[[True, True], [True, False]]]))
    assert rows.tolist() == [[0.0, 1.0, -1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

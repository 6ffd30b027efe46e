"""What two gloo processes annotate and train is what one does, and what they share out (FSDP2) is what each has whole (DDP).

An evaluation of two processes is in `test_evaluate_cli`. Everything here runs in the same two processes, as it takes longer to
start them than to do the work.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from commands.annotate import AnnotationCLI
from commands.guard import main_guard
from commands.train import TrainingCLI
from latent_tts.annotation.reader import AnnotationStore
from latent_tts.backbones import load_backbone
from latent_tts.backbones.lora import LoRA
from latent_tts.errors import UserError
from latent_tts.reward import load_reward_model
from lightning_modules.sharding import ShardedStrategy, shard
from tests.recipes import arguments as arguments_of
from tests.recipes import workplace
from tests.test_latent_rm_module import (
    ONE_STEP,
    SaveGradients,
    annotate,
    assert_same_step,
    fit,
    make_workplace,
    settings_of,
    training_size,
)
from tests.test_reward import tiny_backbone as backbone_to_score
from tests.training import MAKERS, flat_gradients, flat_weights, make_data, make_module, make_trainer, write_tiny_model
from tests.two_processes import SHARDED, SHARDED_EPOCHS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def colar_words(folder: Path, name: str, output: str, processes: int) -> list[str]:
    """A stage of CoLaR in one step of all 32 examples, all at once or 16 in each of two processes."""
    start = folder / ("base" if name == "tiny-colar" else "tiny-colar-1/model")
    more = {"trainer": {"max_epochs": 1}, "data": {"batch_size": 32 // processes}}
    more["model"] = {"max_answer_tokens": 12, "global_batch_size": 32}
    words = arguments_of(folder, name, output=output, backbone=start, export={"dtype": "float32"}, **more)
    return [*words, "--model.optimization.warmup_steps=0"]


def annotation_words(folder: Path, backbone: Path, problems: Path) -> list[str]:
    options = {
        "model.backbone": backbone, "model.num_rollouts": 2, "model.num_continuations": 3, "model.max_answer_tokens": 3,
        "data.source": problems, "data.batch_size": 3, "data.limit": 13, "shard_size": 2, "output": folder / "annotated",
        "trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false",
    }  # fmt: skip
    return [f"--{key}={value}" for key, value in options.items()]


def reward_words(folder: Path) -> list[str]:
    """Two devices by flags alone, on 3 validation batches, so that one process has one more, of a model with buffers."""
    size = training_size(folder) // 2 * 2
    validation = 120 - training_size(folder, leave_out_uniform=False)
    flags = {
        "trainer.devices": 2, "trainer.accelerator": "cpu", "trainer.max_steps": 1, "trainer.precision": "32-true",
        "trainer.gradient_clip_val": 0.1, "trainer.logger": "false", "trainer.enable_progress_bar": "false",
        "trainer.callbacks": "tests.test_latent_rm_module.SaveGradients", "trainer.callbacks.file": folder / "two",
        "output": folder / "run", "model.backbone": folder / "backbone", "model.optimization.lr": 3e-3,
        "model.labels": "continuations", "model.reduction": "sum", "data.folder": folder / "annotations",
        "data.leave_out_uniform_val": "false", "data.batch_size": size // 2, "data.val_batch_size": -(-validation // 3),
        "data.val_share": 0.25,
    }  # fmt: skip
    words = [f"--{key}={value}" for key, value in flags.items()]
    return ["fit", "--config", "configs/train/latent-rm-tiny.yaml", *words]


def run_twice(folder: Path) -> None:
    """`tests.two_processes` as a scheduler starts it, once for each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = [sys.executable, "-m", "tests.two_processes", str(folder)]
    logs = [folder / f"rank-{rank}.log" for rank in (0, 1)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            more = {"LOCAL_RANK": str(rank)}
            ranks.append(
                subprocess.Popen(words, cwd=ROOT, env=environment | more, stdout=out, stderr=subprocess.STDOUT)
            )
    codes = [rank.wait(timeout=600) for rank in ranks]
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_checkpoint, problem_file) -> Path:
    """Where two processes have done their work; what one process has to have done before is there too."""
    folder = tmp_path_factory.mktemp("two")
    write_tiny_model(folder / "model")
    make_data(folder, 2)
    backbone = backbone_to_score("llama")
    backbone.save_pretrained(folder / "backbone")
    annotate(folder / "annotations", settings_of(backbone), problems=40)
    make_workplace(folder / "reward", "llama")
    workplace(folder / "colar")
    assert main_guard(lambda: TrainingCLI(colar_words(folder / "colar", "tiny-colar", "tiny-colar-1", 1))) == 0
    annotated = annotation_words(folder, tiny_checkpoint, problem_file)
    AnnotationCLI([*annotated, "--data.limit=5"]).run()
    commands: list[tuple[str, list[str]]] = [("annotate", [*annotated, *TWO])]
    commands += [
        ("train", [*colar_words(folder / "colar", name, f"{name}-2", 2), *TWO])
        for name in ("tiny-colar", "tiny-colar-grpo")
    ]
    commands += [("train", reward_words(folder / "reward"))]
    (folder / "two_processes.json").write_text(json.dumps(commands))
    run_twice(folder)
    return folder


@pytest.mark.parametrize("kind", MAKERS)
def test_two_processes_train_and_validate_as_one_does(kind, folder):
    """Two accumulated batches of 2 in each of two processes, against one process with one batch of 8. Of 5 problems for
    validation one process has a batch more than the other, and of 2 problems each has one."""
    module = MAKERS[kind](folder / "model", global_batch_size=8, lr=1e-3)
    make_trainer(max_epochs=4, limit_val_batches=0).fit(module, make_data(folder, 8))
    two = torch.load(folder / f"{kind}.pt")
    torch.testing.assert_close(two["weights"], flat_weights(module), atol=2e-4, rtol=0)
    scale = float(flat_gradients(module).abs().max())
    torch.testing.assert_close(two["gradients"], flat_gradients(module), atol=1e-2 * scale, rtol=0)
    one = [make_trainer().validate(module, make_data(folder, 2, size), verbose=False)[0] for size in (5, 2)]
    assert two["results"] == one


def test_both_stages_of_colar_are_those_of_one_process(folder):
    """The first step of Adam turns the rounding of a gradient of nothing into a step of the learning rate, so a few weights may
    differ."""
    place = folder / "colar"
    assert main_guard(lambda: TrainingCLI(colar_words(place, "tiny-colar-grpo", "tiny-colar-grpo-1", 1))) == 0

    def weights(run: str) -> torch.Tensor:
        return torch.cat([p.flatten() for p in load_backbone(place / run / "model").parameters()])

    for name in ("tiny-colar", "tiny-colar-grpo"):
        assert ((weights(f"{name}-1") - weights(f"{name}-2")).abs() < 1e-5).float().mean() > 0.95
    assert not torch.equal(weights("tiny-colar-1"), weights("tiny-colar-grpo-2"))


def test_the_reward_model_takes_the_step_of_one_process(folder, tmp_path):
    """The same clipped gradient and the same metrics."""
    place = folder / "reward"
    size = training_size(place) // 2 * 2
    fit(place, [SaveGradients(str(tmp_path / "one"))], {"batch_size": size}, **ONE_STEP)
    assert_same_step(tmp_path / "one", place / "two")


def test_two_processes_annotate_what_one_would(folder, tiny_checkpoint, problem_file, tmp_path):
    """After a first part that one process has done."""
    words = annotation_words(folder, tiny_checkpoint, problem_file)
    AnnotationCLI([*words, f"--output={tmp_path / 'one'}"]).run()
    ranks = {path.name.split("-")[1] for path in (folder / "annotated").glob("shard-*")}
    assert ranks == {"00000", "00001"}
    assert (folder / "rank-0.log").read_text().count("13 annotated problems") == 1
    assert "annotated problems" not in (folder / "rank-1.log").read_text()
    one, two = AnnotationStore(tmp_path / "one"), AnnotationStore(folder / "annotated")
    assert one.problem_ids == two.problem_ids and len(one) == 13
    for left, right in zip(one, two, strict=True):
        torch.testing.assert_close(left.latents, right.latents, rtol=1e-4, atol=1e-5)
        assert torch.equal(left.values, right.values)


@pytest.mark.parametrize("kind", SHARDED)
def test_a_training_that_is_shared_out_is_the_training_of_ddp(kind, folder):
    """Every epoch of the COCONUT has another number of passes; the last one goes on from a checkpoint."""
    shared, whole = (folder / f"{kind}-{strategy}" for strategy in ("fsdp", "ddp"))
    for epochs in SHARDED_EPOCHS:
        one, other = (torch.load(place / f"{epochs}.pt") for place in (shared, whole))
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5) and len(one["losses"]) == 4
        # each process has its share of the squares under FSDP, all of them under DDP
        torch.testing.assert_close(one["squares"].sqrt(), (other["squares"] / 2).sqrt(), rtol=1e-5, atol=0)
        assert one["metrics"] == pytest.approx(other["metrics"], rel=1e-4)
    mine, theirs = (load_file(place / "model" / "model.safetensors") for place in (shared, whole))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-6)
    if kind == "coconut":
        load_backbone(shared / "model")
    else:
        load_reward_model(shared / "model")


def test_what_cannot_be_shared_out_is_refused(tmp_path):
    adapters = make_module(write_tiny_model(tmp_path), lora=LoRA(r=2))
    options = {"accumulate_grad_batches": 1, "precision": "32-true", "strategy": ShardedStrategy()}
    trainer: Any = SimpleNamespace(**options)
    adapters._trainer = trainer
    with pytest.raises(UserError, match="fsdp does not fit CoconutModule as it is set: give ddp"):
        adapters.setup("fit")
    with pytest.raises(UserError, match="some of this model's are frozen"):
        shard(backbone_to_score("llama").requires_grad_(False), None)
    with pytest.raises(UserError, match="finds no transformer blocks"):
        shard(torch.nn.Linear(2, 2), None)

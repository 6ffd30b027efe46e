"""A question too long for a model's positions stops a run at its start, or is left out and counted where asked."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from commands.annotate import AnnotationCLI
from commands.evaluate import EvaluationCLI
from commands.guard import main_guard
from datamodules import RolloutDataModule
from latent_tts.annotation.reader import AnnotationStore
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.prompts import PromptRoom
from latent_tts.errors import UserError
from latent_tts.reward.model import LatentRewardModel

SHORT, LONG = "Ann has 3 apples. How many?", "Ann has 3 apples. " * 16 + "How many?"


@pytest.mark.parametrize("kind", ["coconut", "codi", "colar", "cot"])
def test_the_room_of_a_prompt_is_what_the_engine_finds(kind, tiny_backbone):
    """At every length up to the 256 positions, and the same after a journey to another process."""
    backbone = tiny_backbone(kind, num_latents=0 if kind == "cot" else 3, n_positions=256)
    engine, room = RolloutEngine(backbone, max_answer_tokens=8), PromptRoom.of("backbone", backbone, 8)
    found = []
    for length in range(1, 256, 5):
        question = "\u00e4" + "7" * length
        found.append(room.lacks(question))
        assert pickle.loads(pickle.dumps(room)).lacks(question) == found[-1]
        if found[-1]:
            with pytest.raises(UserError, match=f"it needs {room.needed(question)} of the model's 256 positions"):
                engine.rollout([question], 1)
        else:
            engine.start([question], 0)
    assert found == sorted(found) and 0 < sum(found) < len(found)


def test_the_room_of_a_reward_model_is_what_it_scores(tiny_backbone):
    backbone = tiny_backbone(n_positions=256)
    model, found = LatentRewardModel.from_backbone(backbone).eval(), []
    room = model.prompt_room(3)
    latents = backbone.embed(model.encode_prompts(["abc"])[0][:, :3]).detach().unsqueeze(0)
    for length in range(201, 300, 5):
        found.append(room.lacks("7" * length))
        if found[-1]:
            with pytest.raises(UserError, match="reward model's 256 positions"):
                model.score(["7" * length], latents)
        else:
            model.score(["7" * length], latents)
    assert found == sorted(found) and 0 < sum(found) < len(found)


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    questions = [SHORT, LONG, "Tom runs 5 miles. How far?"]
    path.write_text("".join(json.dumps({"question": q, "answer": i}) + "\n" for i, q in enumerate(questions)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("cli", [EvaluationCLI, AnnotationCLI])
def test_a_question_that_is_too_long_is_named_at_the_start_or_left_out_and_counted(
    cli, problems, tiny_checkpoint, tmp_path, capsys
):
    options = [
        f"--model.backbone={tiny_checkpoint}",
        f"--data.source={problems}",
        "--data.batch_size=1",
        "--model.num_rollouts=2",
        "--model.max_answer_tokens=4",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--output={tmp_path / 'run'}",
        *(["--model.num_continuations=1"] if cli is AnnotationCLI else []),
    ]
    assert main_guard(lambda: cli(options).run()) == 2
    said = capsys.readouterr().err
    assert "of the backbone's 256 positions" in said and "--data.leave_out_too_long true" in said
    assert not (tmp_path / "run").exists()
    assert main_guard(lambda: cli([*options, "--data.leave_out_too_long=true"]).run()) == 0
    assert "1 problems of" in capsys.readouterr().err
    if cli is AnnotationCLI:
        kept = [problem.question for problem in AnnotationStore(tmp_path / "run")]
    else:
        lines = (tmp_path / "run" / "predictions" / "rank-00000.jsonl").read_text().splitlines()
        kept = [json.loads(line)["question"] for line in lines]
    assert sorted(kept) == [SHORT, "Tom runs 5 miles. How far?"]


class Asks:
    """A trainer whose module reads questions with one model."""

    def __init__(self, room: PromptRoom) -> None:
        self.lightning_module = self
        self.prompt_rooms = lambda: [room]


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_long_question_of_a_hub_set_is_found_as_it_streams(num_workers, tiny_backbone, fake_hub, capfd):
    room = PromptRoom.of("backbone", tiny_backbone(), 8)
    rows = [{"question": question, "answer": 1} for question in (SHORT, LONG, "5 + 6?")]
    fake_hub({("owner/name", "test"): rows})
    data = RolloutDataModule("owner/name", batch_size=1, sort_window=1, num_workers=num_workers)
    data.trainer = Asks(room)  # type: ignore[assignment]
    with pytest.raises(UserError, match="leaves no room .* of the backbone's 256 positions"):
        list(data.predict_dataloader())
    data.leave_out_too_long = True
    assert [problem.question for batch in data.predict_dataloader() for problem in batch] == [SHORT, "5 + 6?"]
    assert "1 problems of 'owner/name' left out as too long" in capfd.readouterr().err


def test_where_every_question_is_too_long_nothing_is_left_to_do(tiny_backbone, problems):
    data = RolloutDataModule(str(problems), leave_out_too_long=True)
    data.trainer = Asks(PromptRoom.of("backbone", tiny_backbone(), 250))  # type: ignore[assignment]
    with pytest.raises(UserError, match="no problem of .* is left"):
        data.setup("predict")

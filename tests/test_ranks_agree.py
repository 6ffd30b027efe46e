"""Processes that would work with other options, weights or data than rank 0 are refused, all of them in the same words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from callbacks.ranks_agree import RanksAgree
from datamodules.annotated_rollout_data import AnnotatedRolloutDataModule
from datamodules.reasoning_steps_data import ReasoningStepsDataModule
from datamodules.rollout_data import RolloutDataModule
from latent_tts.errors import UserError
from tests.ranks import in_ranks
from tests.training import write_examples

OPTIONS = {"data": {"size": 4}, "model": {"backbone": "owner/name"}}


class OneLayer(LightningModule):
    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        torch.nn.init.ones_(self.layer.weight)
        torch.nn.init.constant_(self.layer.bias, bias)


def said(options: list[dict[str, Any]], biases: list[float], data: list[str]) -> list[str]:
    """What each rank says in its set-up; empty where it goes on."""

    def set_up(rank, exchange):
        read = SimpleNamespace(fingerprint=lambda: data[rank])
        trainer: Any = SimpleNamespace(world_size=len(options), datamodule=read)
        try:
            RanksAgree(options[rank], exchange).setup(trainer, OneLayer(biases[rank]), "fit")
        except UserError as error:
            return str(error)
        return ""

    return in_ranks(len(options), set_up)


def test_ranks_of_the_same_work_go_on():
    assert said([OPTIONS] * 3, [0.0] * 3, ["a"] * 3) == ["", "", ""]


@pytest.mark.parametrize(
    ("options", "biases", "data", "named"),
    [
        ([OPTIONS, OPTIONS, OPTIONS | {"data": {"size": 5}}], [0.0] * 3, ["a"] * 3, "Rank 2 has another value of --data.size"),
        ([OPTIONS, {"data": OPTIONS["data"]}, OPTIONS], [0.0] * 3, ["a"] * 3, "(none and owner/name)"),
        ([OPTIONS] * 3, [0.0, 1e-7, 0.0], ["a"] * 3, "Rank 1 has another value of weights"),
        ([OPTIONS] * 3, [0.0] * 3, ["a", "a", "b"], "Rank 2 has another value of data than rank 0 (b and a)"),
    ],
    ids=["an option", "an option that is missing", "a weight", "data"],
)  # fmt: skip
def test_the_first_rank_that_differs_is_named_on_all(options, biases, data, named):
    sentences = said(options, biases, data)
    assert len(set(sentences)) == 1 and named in sentences[0]


def test_one_process_compares_nothing():
    def forbidden(value: Any) -> list[Any]:
        raise AssertionError("there is nobody to ask")

    trainer: Any = SimpleNamespace(world_size=1, datamodule=None)
    RanksAgree(OPTIONS, forbidden).setup(trainer, OneLayer(), "predict")


def problems(file, rows):
    file.write_text("".join(f'{{"question": "{question}", "answer": "#### {gold}"}}\n' for question, gold in rows))
    data = RolloutDataModule(str(file))
    data.setup("predict")
    return data.fingerprint()


def test_the_fingerprint_of_problems_depends_on_questions_golds_and_their_order(tmp_path):
    rows = [("a?", 1), ("b?", 2), ("c?", 3)]
    found = [
        problems(tmp_path / "a.jsonl", rows),
        problems(tmp_path / "b.jsonl", rows),
        problems(tmp_path / "c.jsonl", [*rows[:2], ("c?", 4)]),
        problems(tmp_path / "d.jsonl", rows[::-1]),
        problems(tmp_path / "e.jsonl", rows[:2]),
    ]
    assert found[0] == found[1] and len(set(found)) == 4


def test_the_fingerprint_of_training_data_depends_on_every_example(tmp_path):
    found = []
    for name, numbers in {"a": range(6), "b": range(6), "c": range(1, 7)}.items():
        write_examples(tmp_path / f"{name}.jsonl", numbers)
        data = ReasoningStepsDataModule(train=str(tmp_path / f"{name}.jsonl"), val=None)
        data.setup("fit")
        found.append(data.fingerprint())
    assert found[0] == found[1] != found[2]


def test_the_fingerprint_of_annotations_depends_on_their_problems_and_settings():
    def annotated(settings: str, *questions: str) -> str:
        data = AnnotatedRolloutDataModule("annotations")
        data.stores = [SimpleNamespace(settings=SimpleNamespace(digest=lambda: settings), questions=questions)]  # type: ignore[list-item]
        return data.fingerprint()

    found = [annotated("s", "a?", "b?"), annotated("s", "a?", "b?"), annotated("s", "a?"), annotated("t", "a?", "b?")]
    assert found[0] == found[1] and len(set(found)) == 3

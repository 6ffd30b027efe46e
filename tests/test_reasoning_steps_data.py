"""Training batches: a function of (seed, epoch), shared out over ranks, and never a question of the held-out sets."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.training_folder import KeepRun
from datamodules import ReasoningStepsDataModule, RolloutDataModule
from datamodules.batching import LengthGroupedBatches, LengthSortedBatches
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample, problem_id_from_question
from tests.conftest import HUB_COMMIT

TEMPLATES = [43, 48, 10]
QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def length(index: int) -> int:
    return (index * 37) % 101


def grouped(**options) -> LengthGroupedBatches:
    defaults: dict[str, Any] = {"num_items": 100, "length": length, "batch_size": 4, "seed": 0, "pool_batches": 5}
    return LengthGroupedBatches(**(defaults | options))


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(numbers: range) -> list[dict]:
    return [{"question": f"{i} and 1?", "steps": [f"<<{i}+1={i + 1}>>"], "answer": str(i + 1)} for i in numbers]


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    return write(tmp_path / "train.jsonl", rows(range(50))), write(tmp_path / "val.jsonl", rows(range(45, 52)))


# ---- samplers


def test_an_epoch_has_every_item_at_most_once_and_all_that_fill_a_batch():
    for num_items in (4, 97, 100):
        items = Counter(i for batch in grouped(num_items=num_items) for i in batch)
        assert len(items) == num_items // 4 * 4
        assert set(items.values()) == {1}
        assert set(items) <= set(range(num_items))


def test_the_order_is_a_function_of_seed_and_epoch():
    sampler = grouped()
    first = list(sampler)
    assert list(sampler) == first == list(grouped())
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first != list(grouped(seed=1))
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_take_equally_many_batches_without_sharing_an_item(world_size):
    shares = [list(grouped(rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert (
        {len(share) for share in shares} == {100 // (4 * world_size)} == {len(grouped(rank=0, world_size=world_size))}
    )
    assert max(Counter(i for share in shares for batch in share for i in batch).values()) == 1
    assert all(len(batch) == 4 for share in shares for batch in share)


def test_batches_hold_similar_lengths():
    """The spread within a batch is far below that of batches cut from a plain shuffle."""
    spread = [max(map(length, batch)) - min(map(length, batch)) for batch in grouped(pool_batches=25)]
    plain = [max(map(length, batch)) - min(map(length, batch)) for batch in grouped(pool_batches=1)]
    assert sum(spread) < 0.2 * sum(plain)


def test_fresh_epochs_have_new_items():
    sampler = grouped(fresh_per_epoch=True)
    seen = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        seen += [i for batch in sampler for i in batch]
    assert sorted(seen) == list(range(300))


def test_too_few_items_are_an_error_that_names_the_way_out():
    with pytest.raises(UserError, match="3 training examples don't fill one batch of 4 on each of 2 devices: lower"):
        grouped(num_items=3, rank=0, world_size=2)


def test_validation_has_every_item_once_longest_first():
    lengths = [3, 1, 4, 1, 5]
    assert list(LengthSortedBatches(lengths, 2)) == [[4, 2], [0, 1], [3]]


# ---- sources


def test_files_are_read_and_validation_questions_left_out_of_training(files):
    data = ReasoningStepsDataModule(train=files[0], val=files[1], batch_size=5)
    data.setup("fit")
    train = {example for batch in data.train_dataloader() for example in batch}
    val = [example for batch in data.val_dataloader() for example in batch]
    assert train == {ReasoningExample(r["question"], tuple(r["steps"]), r["answer"]) for r in rows(range(45))}
    assert sorted(e.question for e in val) == sorted(r["question"] for r in rows(range(45, 52)))


def test_questions_of_excluded_files_are_left_out_too(files, tmp_path):
    held_out = write(tmp_path / "test.jsonl", [{"question": " 3 and 1? ", "answer": "4"}])
    data = ReasoningStepsDataModule(train=files[0], val=None, exclude=[held_out])
    data.setup("fit")
    assert data.val_dataloader() == []
    assert len(data.train_examples) == 49  # type: ignore[arg-type]
    assert "3 and 1?" not in {example.question for example in data.train_examples.examples}


NEARLY_EQUAL = [
    "  ANN\u2019s  3 pens cost $2.50 . How many ? ",
    "Ann's 3 pens cost $2.50. How many?",
    "anns 3 pens cost $2.50; how many",
]
DIFFERENT = [
    "Ann's 35 pens cost $2.50. How many?",
    "Ann's 3 pens cost $250. How many?",
    "Ann's 3 pens cost $2.50. How much?",
]


@pytest.mark.parametrize("held_out", ["val", "exclude"])
def test_nearly_equal_questions_are_left_out_of_training_and_counted(tmp_path, held_out, capsys):
    """However case, blanks and quotation marks are written; other numbers or words make another question."""
    solved = [{"question": q, "steps": ["<<3*2.5=7.5>>"], "answer": "7.5"} for q in NEARLY_EQUAL + DIFFERENT]
    train = write(tmp_path / "train.jsonl", solved)
    test = write(tmp_path / "test.jsonl", solved[1:2])
    options = {"val": test} if held_out == "val" else {"val": None, "exclude": [test]}
    data = ReasoningStepsDataModule(train=train, **options)
    data.setup("fit")
    assert [example.question for example in data.train_examples.examples] == DIFFERENT
    said = capsys.readouterr().err
    assert "3 of 6 examples" in said and "3: its question is one of validation or exclude" in said


def test_questions_that_come_again_within_a_set_are_counted(tmp_path, capsys):
    path = tmp_path / "repeats.jsonl"
    questions = ["Ann's pens: 3?", " ann\u2019s PENS: 3 ?", "Tom's pens: 3?"]
    rows = [{"question": question, "steps": ["<<1+2=3>>"], "answer": "3"} for question in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ReasoningStepsDataModule(str(path), None, batch_size=1)
    data.setup("fit")
    assert data.train_examples is not None and len(data.train_examples) == 3
    assert "training data: 1 of 3 examples of" in capsys.readouterr().err


def test_an_excluded_set_is_read_in_its_own_columns(fake_hub, tmp_path):
    """The columns that are named are those of the training set."""
    fake_hub({("reasoning-machines/gsm-hard", "train"): [{"input": "1 and 1?", "target": 2.0}]})
    renamed = [{"asked": row["question"], "steps": row["steps"], "answer": row["answer"]} for row in rows(range(4))]
    train = write(tmp_path / "train.jsonl", renamed)
    data = ReasoningStepsDataModule(train=train, val=None, exclude=["gsm_hard"], question_column="asked")
    data.setup("fit")
    assert {example.question for example in data.train_examples.examples} == {"0 and 1?", "2 and 1?", "3 and 1?"}


def test_a_step_range_leaves_out_training_problems_with_fewer_or_more_steps(tmp_path):
    """As they are and resampled; validation keeps its problems."""

    def chain(i: int, num_steps: int) -> dict:
        numbers = [13 + i, *(17 + i * step for step in range(1, num_steps + 1))]
        steps, total = [], numbers[0]
        for number in numbers[1:]:
            steps.append(f"<<{total}+{number}={total + number}>>")
            total += number
        words = " and then ".join(f"{number} pens" for number in numbers)
        return {"question": f"Person {'ab'[i % 2]} has {words}. How many pens?", "steps": steps, "answer": str(total)}

    everything = [chain(i, num_steps) for i in (1, 2) for num_steps in (1, 2, 3, 4)]
    train, val = write(tmp_path / "train.jsonl", everything), write(tmp_path / "val.jsonl", [chain(9, 5)])
    listed = ReasoningStepsDataModule(train=train, val=val, step_range=(2, 3))
    listed.setup("fit")
    assert sorted(len(example.steps) for example in listed.train_examples.examples) == [2, 2, 3, 3]
    assert [len(example.steps) for example in listed.val_examples.examples] == [5]
    drawn = ReasoningStepsDataModule(train=f"resampled:{train}", val=val, step_range=(2, 3), train_size=60)
    drawn.setup("fit")
    assert {len(drawn.train_examples[[i]][0].steps) for i in range(60)} == {2, 3}  # type: ignore[index]
    for bad in ((0, 2), (3, 2)):
        with pytest.raises(UserError, match="step_range must name the fewest and the most steps"):
            ReasoningStepsDataModule(train=train, val=None, step_range=bad)


def test_gsm8k_trains_without_the_questions_it_validates_on(excerpts):
    data = ReasoningStepsDataModule(
        train=str(excerpts / "gsm8k/train.jsonl"), val=str(excerpts / "gsm8k/valid_steps.json")
    )
    data.setup("fit")
    train = {" ".join(example.question.split()) for example in data.train_examples.examples}
    val = {" ".join(example.question.split()) for example in data.val_examples.examples}
    lines = (excerpts / "gsm8k/train.jsonl").read_text().splitlines()
    with_steps = {" ".join(row["question"].split()) for row in map(json.loads, lines) if "<<" in row["answer"]}
    assert len(val) == 40
    assert val & with_steps
    assert train == with_steps - val


def test_a_training_keeps_the_commits_that_its_hub_sets_were_read_at(fake_hub, tmp_path):
    fake_hub({("owner/name", "train"): rows(range(8)), ("openai/gsm8k", "test"): rows(range(8, 10))})
    data = ReasoningStepsDataModule(train="owner/name@v1", val=None, exclude=["gsm8k"])
    data.setup("fit")
    trainer: Any = SimpleNamespace(is_global_zero=True, datamodule=data)
    KeepRun(tmp_path, "", {"started": "then"}).on_train_start(trainer, LightningModule())
    commits = json.loads((tmp_path / "run.json").read_text())["data_commits"]
    assert commits == {"owner/name@v1": HUB_COMMIT, "gsm8k": HUB_COMMIT}


def test_columns_of_hub_sets_are_read(fake_hub):
    """GSM8K-Aug's splits and columns, with the hub's client replaced."""
    hub_id = "whynlp/gsm8k-aug"
    asked = fake_hub({(hub_id, "train"): rows(range(8)), (hub_id, "validation"): rows(range(8, 10))})
    data = ReasoningStepsDataModule(train="gsm8k-aug", val="gsm8k-aug", batch_size=2)
    data.setup("fit")
    assert [len(examples or ()) for examples in (data.train_examples, data.val_examples)] == [8, 2]
    assert asked == [(hub_id, None, "validation"), (hub_id, None, "train")]


def test_excluding_multiarith_leaves_none_of_its_problems_in(fake_hub, tmp_path):
    problems = [{"question": f"{i} and 1?", "final_ans": str(i + 1)} for i in range(60)]
    fake_hub({("ChilleD/MultiArith", "test"): problems[:20], ("ChilleD/MultiArith", "train"): problems[20:50]})
    train = write(tmp_path / "train.jsonl", rows(range(60)))
    data = ReasoningStepsDataModule(train=train, val=None, exclude=["multiarith"])
    data.setup("fit")
    assert {example.question for example in data.train_examples.examples} == {f"{i} and 1?" for i in range(50, 60)}


def test_sources_without_steps_and_bad_sizes_are_one_sentence(tmp_path):
    no_steps = write(tmp_path / "plain.jsonl", [{"question": "a?", "answer": "1"}])
    with pytest.raises(UserError, match=r"has no usable training example among its 1 rows"):
        ReasoningStepsDataModule(train=no_steps, val=None).setup("fit")
    with pytest.raises(UserError, match="no column 'thoughts'"):
        ReasoningStepsDataModule(train=no_steps, val=None, steps_column="thoughts").setup("fit")
    bad = write(tmp_path / "bad.jsonl", [*rows(range(1)), {"question": "a?", "steps": 3, "answer": "1"}])
    with pytest.raises(UserError, match=r"bad.jsonl, line 2: column 'steps' must hold a list of strings, not 3"):
        ReasoningStepsDataModule(train=bad, val=None).setup("fit")
    for option in ("batch_size", "train_size", "val_size", "pool_batches"):
        with pytest.raises(UserError, match=f"{option} must be at least 1, got 0"):
            ReasoningStepsDataModule(**{option: 0})  # type: ignore[arg-type]


# ---- GSM-Symbolic


def test_generated_training_never_meets_validation_or_test():
    """However many problems are drawn: templates with few questions, and the seeds all equal."""
    data = ReasoningStepsDataModule(train_size=400, val_size=50, seed=0, val_seed=0, templates=[52], batch_size=8)
    data.setup("fit")
    train = {problem_id_from_question(e.question) for batch in data.train_dataloader() for e in batch}
    val = {problem_id_from_question(e.question) for batch in data.val_dataloader() for e in batch}
    test = {p.problem_id.partition("-")[0] for p in RolloutDataModule(size=50, seed=0, templates=[52]).problems()}
    assert not train & val
    assert not train & test
    assert not val & test


@pytest.mark.parametrize("fresh", [True, False])
def test_epochs_are_fresh_where_asked(fresh):
    data = ReasoningStepsDataModule(train_size=40, val_size=1, templates=TEMPLATES, batch_size=4, fresh_per_epoch=fresh)
    data.setup("fit")
    loader = data.train_dataloader()
    assert len(loader) == 10
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        epochs.append([example for batch in loader for example in batch])
    assert epochs[0] != epochs[1]
    same = {e.question for e in epochs[0]} == {e.question for e in epochs[1]}
    assert same != fresh


def test_workers_give_the_same_batches():
    options: dict[str, Any] = {"train_size": 40, "val_size": 1, "templates": TEMPLATES, "batch_size": 4}
    batches = []
    for num_workers in (0, 2):
        data = ReasoningStepsDataModule(**options, num_workers=num_workers)
        data.setup("fit")
        batches.append(list(data.train_dataloader()))
    assert batches[0] == batches[1]


# ---- under a Trainer


class Recorder(LightningModule):
    """Keeps the questions of every training batch by epoch."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.folder = folder
        self.batches: dict[int, list[list[str]]] = {}

    def training_step(self, batch: list[ReasoningExample]) -> torch.Tensor:
        questions = [example.question for example in batch]
        self.batches.setdefault(self.current_epoch, []).append(questions)
        if self.folder is not None:
            with (self.folder / f"rank{self.global_rank}.jsonl").open("a") as file:
                file.write(json.dumps([self.current_epoch, questions]) + "\n")
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: list[ReasoningExample]) -> None:
        assert isinstance(batch[0], ReasoningExample)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def data_module() -> ReasoningStepsDataModule:
    return ReasoningStepsDataModule(train_size=24, val_size=3, templates=TEMPLATES, batch_size=4)


def test_a_run_resumed_at_an_epoch_sees_the_same_batches(tmp_path):
    whole = Recorder()
    Trainer(accelerator="cpu", max_epochs=4, enable_checkpointing=False, **QUIET).fit(whole, datamodule=data_module())
    assert [len(whole.batches[epoch]) for epoch in range(4)] == [6] * 4
    assert whole.batches[0] != whole.batches[1]

    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    first = Recorder()
    Trainer(accelerator="cpu", max_epochs=2, callbacks=[checkpoint], **QUIET).fit(first, datamodule=data_module())
    resumed = Recorder()
    Trainer(accelerator="cpu", max_epochs=4, enable_checkpointing=False, **QUIET).fit(
        resumed, datamodule=data_module(), ckpt_path=str(tmp_path / "last.ckpt")
    )
    assert first.batches | resumed.batches == whole.batches
    assert set(resumed.batches) == {2, 3}


def test_two_processes_share_an_epoch_out(tmp_path):
    """Lightning puts no sampler of its own on top: 24 examples are 3 batches of 4 on each rank, none twice."""
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp_fork", "max_epochs": 2, "enable_checkpointing": False}
    Trainer(accelerator="cpu", **options, **QUIET).fit(Recorder(tmp_path), datamodule=data_module())
    records = [[json.loads(x) for x in (tmp_path / f"rank{r}.jsonl").read_text().splitlines()] for r in range(2)]
    assert [[epoch for epoch, _ in record] for record in records] == [[0, 0, 0, 1, 1, 1]] * 2
    data = data_module()
    data.setup("fit")
    for epoch in range(2):
        shared = [q for record in records for e, questions in record if e == epoch for q in questions]
        drawn = [data.train_examples.problems.example(24 * epoch + i).question for i in range(24)]
        assert sorted(shared) == sorted(drawn)


def test_every_option_has_a_sentence_of_help():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(ReasoningStepsDataModule, "data")
    options = [action for action in parser._actions if action.dest.startswith("data.")]
    assert options
    assert all(action.help and len(action.help) > 15 for action in options)

"""The stream of test problems: every problem once, in the same batches whatever the number of ranks and workers."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import LightningModule, Trainer

from datamodules import RolloutDataModule
from datamodules.batching import length_sorted_batches
from datamodules.rollout_data import ProblemBatches
from latent_tts import problems
from latent_tts.errors import UserError
from latent_tts.problems import Problem, question_key

PROBLEMS = [Problem(f"id{i}", "x" * (1 + (i * 37) % 101), float(i)) for i in range(83)]


def plan(**options) -> list[list[Problem]]:
    return list(ProblemBatches(PROBLEMS, **({"batch_size": 4, "sort_window": 24} | options)))


@pytest.fixture
def source(tmp_path) -> str:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i} " * (i % 7 + 1), "answer": i}) + "\n" for i in range(30)))
    return str(path)


# ---- the batch plan


def test_windows_are_sorted_longest_first():
    """Written out by hand: windows of 4, batches of 2."""
    batches = list(length_sorted_batches([3, 1, 4, 1, 5, 9, 2, 6, 5], 2, lambda item: item, sort_window=5))
    assert batches == [[4, 3], [1, 1], [9, 6], [5, 2], [5]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 21])
def test_batches_do_not_depend_on_the_number_of_ranks(world_size):
    """Up to as many ranks as there are batches."""
    shares = [plan(rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [shares[i % world_size][i // world_size] for i in range(len(plan()))] == plan()
    assert Counter(p for share in shares for batch in share for p in batch) == Counter(PROBLEMS)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 40), st.integers(1, 70))
def test_every_problem_is_on_one_rank_and_no_rank_is_idle(num_problems, batch_size, window, world_size):
    options = {"batch_size": batch_size, "sort_window": window, "world_size": world_size}
    shares = [list(ProblemBatches(PROBLEMS[:num_problems], rank=rank, **options)) for rank in range(world_size)]
    assert Counter(p for share in shares for batch in share for p in batch) == Counter(PROBLEMS[:num_problems])
    assert sum(map(bool, shares)) == min(num_problems, world_size)
    assert all(len(batch) <= batch_size for share in shares for batch in share)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_hub_set_gives_every_problem_once_with_any_shards_and_workers(
    num_shards, num_workers, tmp_path, monkeypatch, unknown_commit
):
    """`datasets` shares the shards of a stream out over the workers by itself: half of these problems were lost."""
    import datasets

    files = [tmp_path / f"{shard}.jsonl" for shard in range(num_shards)]
    for shard, file in enumerate(files):
        numbers = range(shard, 100, num_shards)
        file.write_text(
            "".join(json.dumps({"question": f"{i} and 4?", "answer": f"#### {i + 4}"}) + "\n" for i in numbers)
        )
    load = datasets.load_dataset

    def load_dataset(*args, **kwargs):
        return load("json", data_files=list(map(str, files)), split="train", streaming=True)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = RolloutDataModule("owner/name", num_workers=num_workers, batch_size=8)
    data.setup("predict")
    problems = [problem for batch in data.predict_dataloader() for problem in batch]
    assert data.commit is None
    assert sorted(problem.gold for problem in problems) == [i + 4.0 for i in range(100)]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_share_the_batches_out_without_duplicates(source, num_workers):
    expected = list(RolloutDataModule(source, batch_size=4).predict_dataloader())
    assert list(RolloutDataModule(source, batch_size=4, num_workers=num_workers).predict_dataloader()) == expected


def test_a_limit_takes_the_first_problems():
    everything = list(RolloutDataModule(size=12).problems())
    data = RolloutDataModule(size=12, limit=5, batch_size=2)
    assert sorted(p.problem_id for batch in data.predict_dataloader() for p in batch) == sorted(
        p.problem_id for p in everything[:5]
    )
    assert list(RolloutDataModule(size=12, limit=1000).problems()) == everything


def test_finished_batches_are_left_out_and_the_others_stay_whole():
    """For any set of finished problems and any number of ranks: exactly the batches with something left to do."""
    done = {f"id{i}" for i in range(83) if i % 3 or i > 40}
    expected = [batch for batch in plan() if not {p.problem_id for p in batch} <= done]
    assert 0 < len(expected) < len(plan())
    assert plan(is_done=done.__contains__) == expected
    halves = [plan(is_done=done.__contains__, rank=rank, world_size=2) for rank in range(2)]
    assert sorted(map(str, halves[0] + halves[1])) == sorted(map(str, expected))
    assert plan(is_done=lambda problem_id: True) == []


# ---- the data module


class Recorder(LightningModule):
    """Writes the ids of every batch that it is given to a file of its rank."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.layer = torch.nn.Linear(1, 1)

    def predict_step(self, batch: list[Problem]) -> None:
        assert all(isinstance(problem, Problem) for problem in batch)
        with (self.folder / f"rank{self.global_rank}.txt").open("a") as file:
            file.write(" ".join(problem.problem_id for problem in batch) + "\n")


def predict(tmp_path: Path, data: RolloutDataModule, **options) -> list[str]:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet, **options)
    trainer.predict(Recorder(tmp_path), datamodule=data, return_predictions=False)
    return [line for path in sorted(tmp_path.glob("rank*.txt")) for line in path.read_text().splitlines()]


def test_a_trainer_sees_every_problem_once(tmp_path, source):
    data = RolloutDataModule(source, batch_size=4)
    lines = predict(tmp_path, data, devices=1)
    assert data.num_problems == 30
    assert lines == [" ".join(p.problem_id for p in batch) for batch in data.predict_dataloader()]


def test_two_processes_see_every_problem_once_in_the_same_batches(tmp_path, source):
    """Lightning adds no sampler of its own, and 8 batches of 30 problems are 4 on each rank."""
    lines = predict(tmp_path, RolloutDataModule(source, batch_size=4), devices=2, strategy="ddp_fork")
    alone = RolloutDataModule(source, batch_size=4).predict_dataloader()
    batches = [" ".join(p.problem_id for p in batch) for batch in alone]
    assert lines == batches[0::2] + batches[1::2]


def test_the_offline_default_is_stable():
    """Same ids in another object; another seed gives other problems; sizes nest."""
    problems = list(RolloutDataModule(size=20).problems())
    assert list(RolloutDataModule(size=20).problems()) == problems
    assert list(RolloutDataModule(size=25).problems())[:20] == problems
    assert list(RolloutDataModule(limit=20).problems()) == problems
    other = {problem.problem_id for problem in RolloutDataModule(size=20, seed=1).problems()}
    assert not other & {problem.problem_id for problem in problems}
    assert len({problem.problem_id for problem in problems}) == 20


def test_repeated_questions_keep_both_results_apart(tmp_path):
    path = tmp_path / "repeats.jsonl"
    path.write_text('{"question": "a?", "answer": 1}\n' * 3)
    first, second, third = [p.problem_id for p in RolloutDataModule(str(path)).problems()]
    assert (second, third) == (f"{first}-2", f"{first}-3")


def test_setup_finds_a_bad_row_before_the_run_and_counts_the_skipped(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a?", "answer": 1}\n{"question": "b?", "answer": "none"}\n')
    with pytest.raises(UserError, match=r"line 2: the answer 'none'"):
        RolloutDataModule(str(path)).setup("predict")
    data = RolloutDataModule(str(path), skip_bad_rows=True)
    data.setup("predict")
    assert re.search(r"1 of 2 rows of .* left out, the first: .*line 2", capsys.readouterr().err)
    assert data.num_problems == 1
    limited = RolloutDataModule(str(path), limit=1)
    limited.setup("predict")  # what is not asked for is not read
    assert limited.num_problems == 1


@pytest.mark.parametrize(
    "options", [{"limit": 0}, {"batch_size": 0}, {"batch_size": -3}, {"sort_window": 0}, {"size": 0}]
)
def test_numbers_below_one_are_refused(options):
    name, value = next(iter(options.items()))
    with pytest.raises(UserError, match=f"{name} must be at least 1, got {value}"):
        RolloutDataModule(**options)


def test_every_whole_set_is_streamed(whole_sets):
    for name, number in (("gsm8k/test.jsonl", 1319), ("gsm_hard/test.json", 1318), ("multiarith/test.json", 580)):
        data = RolloutDataModule(str(whole_sets / name), batch_size=16)
        data.setup("predict")
        batches = list(data.predict_dataloader())
        assert len({p.problem_id for batch in batches for p in batch}) == data.num_problems == number


def test_a_hub_set_is_opened_but_not_read_through(monkeypatch, unknown_commit):
    import datasets

    taken = []

    def rows():
        for i in range(100):
            taken.append(i)
            yield {"question": f"{i}?", "answer": str(i)}

    def load_dataset(*args, **kwargs):
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = RolloutDataModule("gsm8k", batch_size=2, sort_window=4)
    data.setup("predict")
    assert len(taken) == 1
    assert data.num_problems is None
    next(iter(data.predict_dataloader()))
    assert taken == [0, *range(4)]  # one window


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_rows_of_a_hub_set_are_checked_as_they_stream_and_what_is_left_out_is_said(num_workers, fake_hub, capfd):
    """Once, by whoever has gone through the stream: the main process, or its first worker."""
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(30)]
    rows[20] = {"question": "20?", "answer": "5:30"}
    fake_hub({("owner/name", "test"): rows})
    data = RolloutDataModule("owner/name", batch_size=4, sort_window=4, num_workers=num_workers)
    data.setup("predict")
    with pytest.raises(UserError, match="row 21: the answer '5:30'"):
        list(data.predict_dataloader())
    data = RolloutDataModule("owner/name", batch_size=4, num_workers=num_workers, skip_bad_rows=True)
    data.setup("predict")
    assert sum(map(len, data.predict_dataloader())) == 29
    said = capfd.readouterr().err
    assert said.count("1 of 30 rows of 'owner/name' left out, the first: owner/name (test), row 21") == 1


@pytest.mark.parametrize(("num_rows", "is_told"), [(1319, False), (1318, False), (1317, True)])
def test_another_number_of_rows_than_a_set_is_known_to_have_is_said(num_rows, is_told, fake_hub, capsys):
    fake_hub({("reasoning-machines/gsm-hard", "train"): [{"input": f"{i}?", "target": i} for i in range(num_rows)]})
    data = RolloutDataModule("gsm_hard", batch_size=100)
    assert sum(map(len, data.predict_dataloader())) == num_rows
    assert ("'gsm_hard' had 1317 rows, where 1318 or 1319 are known" in capsys.readouterr().err) == is_told
    assert sum(map(len, RolloutDataModule("gsm_hard", limit=5).predict_dataloader())) == 5
    assert "are known" not in capsys.readouterr().err  # the set was not gone through


def test_repeated_questions_are_counted_and_taken_once_where_asked(tmp_path, recwarn, capsys):
    path = tmp_path / "repeats.jsonl"
    texts = ["Janet's ducks lay 3 eggs?", " janet\u2019s  DUCKS lay 3 eggs ?", "Janet's ducks lay 35 eggs?"]
    for other, at_odds in ((1, False), (2, True)):
        rows = ({"question": text, "answer": answer} for text, answer in zip(texts, (1, other, 1), strict=True))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = RolloutDataModule(str(path))
        data.setup("predict")
        assert data.num_problems == 3
        said = capsys.readouterr().err
        assert "1 of 3 problems" in said and "leave_out_repeats" in said
        assert ("1 of the questions with different gold answers" in said) == at_odds
    once = RolloutDataModule(str(path), leave_out_repeats=True)
    once.setup("predict")
    assert [problem.question for problem in once.problems()] == [texts[0], texts[2]]
    assert once.num_problems == 2


def test_finished_problems_are_left_out_by_a_method_of_the_data_module(source):
    data = RolloutDataModule(source, batch_size=4)
    batches = list(data.predict_dataloader())
    done = {problem.problem_id for problem in batches[0] + batches[1][:3]}
    data.leave_out(done.__contains__)
    assert list(data.predict_dataloader()) == batches[1:]


def test_every_option_has_a_sentence_of_help():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(RolloutDataModule, "data")
    options = [action for action in parser._actions if action.dest.startswith("data.")]
    assert options
    assert all(action.help and len(action.help) > 15 for action in options)


@given(st.lists(st.sampled_from(["Ann's", "has", "3", "3.5", "35", "$2", "pens.", "How", "many"]), min_size=1))
def test_a_question_s_key_ignores_how_it_is_set_and_nothing_else(words):
    question = " ".join(words)
    set_otherwise = f"  {'  '.join(words).upper().replace(chr(39), chr(0x2019))} ?"
    assert question_key(question) == question_key(set_otherwise) == question_key(question_key(question))
    assert question_key(question + " 4") != question_key(question) != question_key("pears " + question)


def test_the_expressions_of_a_question_s_key_take_no_longer_than_a_text_is():
    """Each is one class of characters and repeats nothing, so that every character of a text is looked at once."""
    for expression in (problems._NO_WORD, problems._APOSTROPHES):
        assert re.fullmatch(r"\[[^\[\]]+\]", expression.pattern)
    adversarial = "".join(f"{'.' * 50}{quote}{'-' * 50} " for quote in "\"'`") * 2000
    assert question_key(adversarial + "7") == "7"

"""Batches that follow from memory, and work that ran out of it: the results are those of any other batch, once each."""

from __future__ import annotations

import gc
import json
import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from commands.evaluate import EvaluationCLI
from commands.guard import main_guard
from latent_tts.engine.engine import RolloutEngine, join_rollouts
from latent_tts.engine.memory import (
    BatchBudget,
    DoesNotFitError,
    FittingParts,
    free_bytes,
    is_out_of_memory,
    position_bytes,
    rollout_bytes,
)
from latent_tts.engine.state import ThoughtState
from latent_tts.errors import UserError
from latent_tts.problems import Problem
from latent_tts.reward import LatentRewardModel
from latent_tts.sampling import AdditiveGaussianNoise, MonteCarloDropout
from lightning_modules.parallel_tts_module import ParallelTTSModule
from lightning_modules.rollout_annotation_module import RolloutAnnotationModule

NO_MEMORY = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"


@pytest.fixture(scope="module")
def backbone(tiny_backbone):
    return tiny_backbone("coconut", "gpt2", num_latents=3)


@pytest.fixture
def problems(questions) -> list[Problem]:
    return [Problem(f"id-{i}", question, float(i)) for i, question in enumerate(questions)]


@pytest.fixture
def little_memory(monkeypatch):
    """Lets a fork into more than so many rows fail as a full memory does."""

    def limit(most_rows: int) -> None:
        fork = ThoughtState.fork

        def full(self: ThoughtState, num_children: int, *args: int) -> ThoughtState:
            if self.num_rows * num_children > most_rows:
                raise RuntimeError(NO_MEMORY)
            return fork(self, num_children, *args)

        monkeypatch.setattr(ThoughtState, "fork", full)

    return limit


# Before: how much fits ------------------------------------------------------------------------------------------------


def test_keys_and_values_of_a_position_by_hand(tiny_backbone):
    """Two tensors, 2 layers, float32: GPT-2 with 4 heads of 8; Llama with 2 key heads of 8."""
    assert position_bytes(tiny_backbone("coconut", "gpt2")) == 2 * 2 * 4 * 8 * 4
    assert position_bytes(tiny_backbone("coconut", "llama")) == 2 * 2 * 2 * 8 * 4


@pytest.mark.parametrize("layout", ["gpt2", "llama"])
def test_a_rollout_is_given_what_it_takes_and_not_much_more(layout, tiny_backbone, questions, monkeypatch):
    """Bytes of all tensors alive as an answer's tokens are fed, at two values of N."""
    backbone = tiny_backbone("coconut", layout, num_latents=3)
    backbone.eos_token_id = -1  # no answer ends early
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(0.5), max_answer_tokens=12)

    def most_alive(num_rollouts: int) -> int:
        alive, last_hidden = [], backbone.last_hidden

        def count(*args, **kwargs):
            if len(alive) % 5 == 4:  # a scan takes a while
                tensors = [found for found in gc.get_objects() if type(found) is torch.Tensor]
                storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
                alive.append(sum(storage.nbytes() for storage in storages.values()))
            else:
                alive.append(0)
            return last_hidden(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(backbone, "last_hidden", count)
            engine.rollout(questions[:1], num_rollouts)
        return max(alive)

    taken = (most_alive(200) - most_alive(8)) / 192
    assert taken <= rollout_bytes(backbone, 3 + 1 + 12) <= 4 * taken


def test_problems_in_a_batch_by_hand(problems):
    """28 + 32 tokens at 5 bytes and 4 rollouts at 75: 600 bytes a problem, of 6100."""
    problem = Problem("id", "?" * 56, 0.0)
    budget = BatchBudget(free=6100, per_prompt_token=5, per_rollout=75, num_rollouts=4, most_problems=1000)
    assert budget.num_problems(problem) == 10
    assert BatchBudget(0, 5, 75, 4, 1000).num_problems(problem) == 1  # one is always tried
    assert BatchBudget(6100, 5, 75, 4, 7).num_problems(problem) == 7


def test_more_memory_and_fewer_rollouts_make_larger_batches(backbone, problems):
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(0.5), max_answer_tokens=12)

    def size(num_rollouts: int, mib: int, reserved_rows: int = 0) -> int:
        return BatchBudget.of(engine, num_rollouts, mib << 20, reserved_rows).num_problems(problems[0])

    assert 1 <= size(64, 4) < size(64, 8) and size(64, 8) < size(16, 8)
    assert size(64, 8, reserved_rows=100) < size(64, 8)
    assert size(64, 1 << 20) == 512 // 64  # a CPU takes no more


def test_free_memory_is_a_sensible_number():
    assert 1 << 20 < free_bytes(torch.device("cpu")) < 1 << 50


# After: what did not fit ----------------------------------------------------------------------------------------------


def test_what_a_full_memory_says():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("most", [1, 2, 3, 10])
def test_parts_cover_the_work_once_in_order_with_one_warning(most):
    parts, done, failed = FittingParts("problems"), [], []

    def work(first: int, end: int) -> list[int]:
        if end - first > most:
            failed.append(end - first)
            raise torch.OutOfMemoryError
        done.append(end - first)
        return list(range(first, end))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first, second = parts.run(work, 10), parts.run(work, 7)
    assert [i for part in first for i in part] == list(range(10))
    assert [i for part in second for i in part] == list(range(7))
    assert len(caught) == (most < 10) and len(failed) == len(set(failed))  # no size is tried again
    assert max(done) == {1: 1, 2: 2, 3: 2, 10: 10}[most]


def test_what_a_failed_attempt_held_is_free_before_the_next():
    held: list[weakref.ref] = []

    def work(first: int, end: int) -> None:
        assert all(tensor() is None for tensor in held)
        kept = torch.zeros(3)
        held.append(weakref.ref(kept))
        if end - first > 1:
            raise MemoryError

    with pytest.warns(UserWarning, match="do not fit"):
        FittingParts("problems").run(work, 4)
    assert len(held) == 2 + 4


def test_other_errors_pass_and_a_part_of_one_is_the_smallest():
    def fail(error: Exception):
        def work(first: int, end: int) -> None:
            raise error

        return work

    with pytest.raises(RuntimeError, match="shapes"):
        FittingParts("problems").run(fail(RuntimeError("shapes")), 4)
    with pytest.warns(UserWarning, match="4 problems at a time"), pytest.raises(DoesNotFitError):
        FittingParts("problems").run(fail(MemoryError()), 4)


@pytest.mark.parametrize(
    "sampler",
    [AdditiveGaussianNoise(0.4), MonteCarloDropout(0.2, scope="latent"), MonteCarloDropout(0.2, scope="prompt+latent")],
    ids=repr,
)
def test_rollouts_drawn_a_few_at_a_time_are_those_drawn_at_once(sampler, backbone, questions):
    engine = RolloutEngine(backbone, sampler, max_answer_tokens=6)
    whole = engine.rollout(questions[:3], 7, seed=2)
    parts = [engine.rollout(questions[:3], n, seed=2, first_rollout=first) for first, n in ((0, 3), (3, 1), (4, 3))]
    joined = join_rollouts(engine, engine.start(questions[:3]).prompts, parts)
    torch.testing.assert_close(joined.latents, whole.latents, rtol=1e-4, atol=1e-5)
    assert (joined.texts, joined.answers, joined.problem_ids) == (whole.texts, whole.answers, whole.problem_ids)
    for name in ("num_latents", "answer_ids", "token_steps"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))


@pytest.mark.parametrize("most_rows", [12, 4, 3, 1])
def test_records_are_the_same_where_memory_is_short(most_rows, backbone, problems, little_memory, tmp_path):
    """Batches of 8 problems with 4 rollouts: 12 rows are 3 problems, 3 rows are a part of one problem."""
    folder = tmp_path / "reward"
    LatentRewardModel.from_backbone(backbone, seed=3).save_pretrained(folder)
    options = {"num_rollouts": 4, "max_answer_tokens": 6, "num_bootstrap": 10, "reward_model": str(folder)}
    expected = ParallelTTSModule(backbone, AdditiveGaussianNoise(0.4), **options).eval().predict_step(problems)
    module = ParallelTTSModule(backbone, AdditiveGaussianNoise(0.4), **options).eval()
    little_memory(most_rows)
    with pytest.warns(UserWarning, match="do not fit in memory"):
        records = module.predict_step(problems)
    assert [record["problem_id"] for record in records] == [problem.problem_id for problem in problems]
    for record, other in zip(records, expected, strict=True):
        for ours, theirs in zip(record["rollouts"], other["rollouts"], strict=True):
            assert ours.pop("step_scores") == pytest.approx(theirs.pop("step_scores"), abs=1e-3)
        assert record.pop("diversity") == pytest.approx(other.pop("diversity"), abs=1e-3)
        assert record == other


def test_a_problem_that_does_not_fit_is_one_sentence(backbone, problems, little_memory):
    options = {"num_rollouts": 4, "max_answer_tokens": 6}
    module = ParallelTTSModule(backbone, AdditiveGaussianNoise(0.4), **options).eval()
    little_memory(0)
    with (
        pytest.warns(UserWarning, match="do not fit"),
        pytest.raises(UserError, match="Not even one problem with one rollout fits"),
    ):
        module.predict_step(problems)


@pytest.mark.parametrize("most_rows", [20, 9, 5])
def test_annotations_are_the_same_where_memory_is_short(most_rows, backbone, problems, little_memory):
    """4 rollouts and 5 continuations: 20 rows are 5 problems or 4 prefixes, 5 rows one problem or one prefix."""
    problems = problems[:6]
    module, short = (
        RolloutAnnotationModule(backbone, AdditiveGaussianNoise(0.4), 4, 5, max_answer_tokens=6, max_rows=25).eval()
        for _ in range(2)
    )
    expected = module.predict_step(problems)
    little_memory(most_rows)
    with pytest.warns(UserWarning, match="do not fit"):
        found = short.predict_step(problems)
    for one, other in zip(found, expected, strict=True):
        assert (one.problem_id, one.answers) == (other.problem_id, other.answers)
        torch.testing.assert_close(one.values, other.values, equal_nan=True)
        torch.testing.assert_close(one.latents, other.latents, rtol=1e-4, atol=1e-5)


def test_an_annotation_that_does_not_fit_is_one_sentence(backbone, problems, little_memory):
    module = RolloutAnnotationModule(backbone, AdditiveGaussianNoise(0.4), 4, 5, max_answer_tokens=6, max_rows=9).eval()
    little_memory(4)
    with pytest.warns(UserWarning, match="do not fit"), pytest.raises(UserError, match="5 continuations of a prefix"):
        module.predict_step(problems[:2])


def test_every_device_makes_the_batches_of_the_one_with_the_least_room(backbone, problems, monkeypatch):
    monkeypatch.setattr("lightning_modules.memory.free_bytes", lambda device: 64 << 20)
    reduced: list[tuple[float, str]] = []

    def reduce(free: torch.Tensor, reduce_op: str) -> torch.Tensor:
        reduced.append((float(free), reduce_op))
        return torch.tensor(float(8 << 20))  # another device has less

    module = ParallelTTSModule(backbone, AdditiveGaussianNoise(0.4), num_rollouts=64, max_answer_tokens=6).eval()
    module.trainer = SimpleNamespace(num_devices=2, strategy=SimpleNamespace(reduce=reduce))
    size = module.problems_per_batch()(problems[0])
    assert reduced == [(32 << 20, "min")]  # two processes share the memory
    assert size == BatchBudget.of(module.engine, 64, 8 << 20).num_problems(problems[0])


# A run ----------------------------------------------------------------------------------------------------------------


def test_a_run_can_go_on_with_batches_as_memory_allows(tiny_checkpoint, problem_file, tmp_path, monkeypatch):
    def evaluate(output: Path, batch_size: str) -> dict[str, dict]:
        options = [
            f"--model.backbone={tiny_checkpoint}", f"--data.source={problem_file}", f"--data.batch_size={batch_size}",
            "--model.num_rollouts=3", "--model.max_answer_tokens=4", "--model.num_bootstrap=50",
            "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", f"--output={output}",
        ]  # fmt: skip
        assert main_guard(lambda: EvaluationCLI(options).run()) == 0
        lines = (output / "predictions" / "rank-00000.jsonl").read_text().splitlines()
        records = {record["problem_id"]: record for record in map(json.loads, lines)}
        assert len(records) == len(lines) == 24
        return records

    expected = evaluate(tmp_path / "fixed", "5")
    predictions = tmp_path / "resumed" / "predictions"
    predictions.mkdir(parents=True)
    (predictions / "settings.json").write_bytes((tmp_path / "fixed/predictions/settings.json").read_bytes())
    some = (tmp_path / "fixed/predictions/rank-00000.jsonl").read_text().splitlines(keepends=True)[:7]
    (predictions / "rank-00000.jsonl").write_text("".join(some))
    sizes: list[int] = []
    predict_step = ParallelTTSModule.predict_step
    monkeypatch.setattr(
        ParallelTTSModule,
        "predict_step",
        lambda self, batch, batch_idx=0: sizes.append(len(batch)) or predict_step(self, batch),
    )
    resumed = evaluate(tmp_path / "resumed", "auto")
    assert sizes == [24]  # everything fits
    for problem_id, record in resumed.items():
        assert [rollout["text"] for rollout in record["rollouts"]] == [
            rollout["text"] for rollout in expected[problem_id]["rollouts"]
        ]

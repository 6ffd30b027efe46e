"""Work that ran out of memory: the results are those of any other batch, once each."""

from __future__ import annotations

import warnings
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.memory import (
    DoesNotFitError,
    FittingParts,
    is_out_of_memory,
)
from latent_tts.engine.rollouts import join_rollouts
from latent_tts.engine.state import ThoughtState
from latent_tts.errors import UserError
from latent_tts.evaluation.records import Record
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


def test_what_a_full_memory_says():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory"))
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


def test_parts_are_counted_in_rows_where_a_piece_has_several():
    """Pieces of 3 rows, at most 13 rows at a time, of which 8 fit: 4 pieces fail, 2 go well; later pieces of 1 row: 6."""
    parts, done = FittingParts("rollouts"), []

    def work(first: int, end: int, rows_each: int) -> None:
        if (end - first) * rows_each > 8:
            raise MemoryError
        done.append((first, end))

    with pytest.warns(UserWarning, match="12 rollouts at a time do not fit"):
        parts.run(lambda first, end: work(first, end, 3), 5, rows_each=3, most=13)
    assert done == [(0, 2), (2, 4), (4, 5)]
    done.clear()
    parts.run(lambda first, end: work(first, end, 1), 13)
    assert done == [(0, 6), (6, 12), (12, 13)]


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
    joined = join_rollouts(parts)
    torch.testing.assert_close(joined.latents, whole.latents, rtol=1e-4, atol=1e-5)
    assert (joined.texts, joined.answers, joined.problem_ids) == (whole.texts, whole.answers, whole.problem_ids)
    for name in ("num_latents", "answer_ids", "token_steps", "shared_steps"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))


def without_floats(record: Record) -> Record:
    """What does not depend on rounding."""
    return replace(record, diversity=(), rollouts=tuple(replace(one, step_scores=None) for one in record.rollouts))


@pytest.mark.slow
@pytest.mark.parametrize("most_rows", [12, 4, 3, 1])
def test_records_are_the_same_where_memory_is_short(most_rows, backbone, problems, little_memory, tmp_path):
    """Batches of 8 problems with 4 rollouts: 12 rows are 3 problems, 3 rows are a part of one problem."""
    folder = tmp_path / "reward"
    LatentRewardModel.from_backbone(backbone, seed=3).save_pretrained(folder)
    options: dict[str, Any] = {"num_rollouts": 4, "max_answer_tokens": 6, "reward_model": str(folder)}
    expected = ParallelTTSModule(backbone, AdditiveGaussianNoise(0.4), **options).eval().predict_step(problems)
    module = ParallelTTSModule(backbone, AdditiveGaussianNoise(0.4), **options).eval()
    little_memory(most_rows)
    with pytest.warns(UserWarning, match="do not fit in memory"):
        records = module.predict_step(problems)
    assert [record.problem_id for record in records] == [problem.problem_id for problem in problems]
    for record, other in zip(records, expected, strict=True):
        for ours, theirs in zip(record.rollouts, other.rollouts, strict=True):
            assert ours.step_scores == pytest.approx(theirs.step_scores, abs=1e-3)
        assert record.diversity == pytest.approx(other.diversity, abs=1e-3)
        assert without_floats(record) == without_floats(other)


def test_a_problem_that_does_not_fit_is_one_sentence(backbone, problems, little_memory):
    options: dict[str, Any] = {"num_rollouts": 4, "max_answer_tokens": 6}
    module = ParallelTTSModule(backbone, AdditiveGaussianNoise(0.4), **options).eval()
    little_memory(0)
    with (
        pytest.warns(UserWarning, match="do not fit"),
        pytest.raises(UserError, match="Not even one problem with one rollout fits"),
    ):
        module.predict_step(problems)


@pytest.mark.slow
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

"""The folder of annotated rollouts: exactly once, whatever is killed; refused where it does not fit."""

import errno
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_tts.annotation.reader import AnnotationStore
from latent_tts.annotation.records import AnnotatedProblem
from latent_tts.annotation.settings import AnnotationSettings
from latent_tts.annotation.writer import AnnotationWriter, write_index
from latent_tts.errors import UserError
from latent_tts.problems import Problem

N, T, D = 3, 4, 8
SETTINGS = AnnotationSettings(
    backbone_fingerprint="f" * 64,
    backbone_kind="coconut",
    hidden_size=D,
    num_latents=T,
    num_rollouts=N,
    num_continuations=2,
    sampler={"name": "AdditiveGaussianNoise", "sigma": 0.5},
    seed=0,
    max_answer_tokens=8,
    data="made up",
)


def problem(number: int) -> AnnotatedProblem:
    """A problem that depends on its number alone, as an annotation depends on its seed and problem alone."""
    generator = torch.Generator().manual_seed(number)
    return AnnotatedProblem(
        problem_id=f"p{number:04d}",
        question=f"What is {number} + 1?",
        gold=number + 1.0,
        latents=torch.randn(N, T, D, generator=generator),
        num_latents=torch.tensor([T, 2, 1]),
        answers=[number + 1.0, None, 7.0],
        correct=torch.tensor([True, False, False]) if number % 3 else torch.tensor([bool(number % 2)] * N),
        values=torch.rand(N, T, generator=generator),
    )


def write(folder: Path, numbers: range, **options: object) -> None:
    with AnnotationWriter(folder, SETTINGS, **options) as writer:  # type: ignore[arg-type]
        for number in numbers:
            writer.add(problem(number))


def assert_same(found: AnnotatedProblem, expected: AnnotatedProblem, tolerance: float = 0.0) -> None:
    mask = expected.mask
    assert (found.problem_id, found.question, found.gold) == (expected.problem_id, expected.question, expected.gold)
    assert list(found.answers) == list(expected.answers)
    assert torch.equal(found.correct, expected.correct) and torch.equal(found.num_latents, expected.num_latents)
    torch.testing.assert_close(found.latents[mask], expected.latents[mask], atol=tolerance, rtol=tolerance)
    assert torch.equal(found.values[mask], expected.values[mask])
    assert not found.latents[~mask].any() and found.values[~mask].isnan().all()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, range(10), shard_size=4)
    store = AnnotationStore(tmp_path)
    assert [found.problem_id for found in store] == [f"p{i:04d}" for i in range(10)]
    for number in range(10):
        assert_same(store[number], problem(number))
    assert store.all_right == [problem(i).all_right for i in range(10)]
    assert store.all_wrong == [problem(i).all_wrong for i in range(10)]
    assert len(store[2:5]) == 3


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_latents_can_be_stored_in_half_precision(tmp_path: Path, dtype: str, tolerance: float) -> None:
    with AnnotationWriter(tmp_path, replace(SETTINGS, latent_dtype=dtype)) as writer:  # type: ignore[arg-type]
        writer.add(problem(1))
    assert_same(AnnotationStore(tmp_path)[0], problem(1), tolerance)


def test_trailing_steps_without_a_latent_are_not_stored(tmp_path: Path) -> None:
    with AnnotationWriter(tmp_path, SETTINGS) as writer:
        writer.add(replace(problem(1), num_latents=torch.tensor([2, 1, 0])))
    assert AnnotationStore(tmp_path)[0].latents.shape == (N, 2, D)


def test_a_problem_is_stored_once(tmp_path: Path) -> None:
    with AnnotationWriter(tmp_path, SETTINGS, shard_size=2) as writer:
        assert [writer.add(problem(i)) for i in (1, 2, 1, 3, 2)] == [True, True, False, True, False]
    assert len(AnnotationStore(tmp_path)) == 3


def test_ranks_write_beside_each_other_and_another_number_of_ranks_goes_on(tmp_path: Path) -> None:
    writers = [AnnotationWriter(tmp_path, SETTINGS, rank, shard_size=2) for rank in range(3)]
    for number in range(7):
        writers[number % 3].add(problem(number))
    for writer in writers[:2]:  # rank 2 is killed before its last shard
        writer.close()
    write(tmp_path, range(12), rank=0)
    assert write_index(tmp_path)["num_problems"] == 12
    assert AnnotationStore(tmp_path).problem_ids == [f"p{i:04d}" for i in range(12)]


def test_finished_shards_are_never_touched_again(tmp_path: Path) -> None:
    write(tmp_path, range(4), shard_size=2)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("shard-*")}
    write(tmp_path, range(9), shard_size=2)
    assert len(before) == 2
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())


def test_a_run_killed_at_any_moment_is_continued_exactly_once(tmp_path: Path) -> None:
    """Kills the writing process as soon as it has put further shards in place, three times, and then lets it finish."""
    process_context = multiprocessing.get_context("fork")  # a fresh interpreter would spend seconds importing
    for _ in range(3):
        shards = len(list(tmp_path.glob("shard-*")))
        process = process_context.Process(target=write, args=(tmp_path, range(60)), kwargs={"shard_size": 3})
        process.start()
        while process.is_alive() and len(list(tmp_path.glob("shard-*"))) < shards + 2:
            time.sleep(0.001)
        process.kill()
        process.join()
    (tmp_path / ".shard-00000-999999.parquet.0").write_bytes(b"half a shard")
    write(tmp_path, range(60), shard_size=3)
    store = AnnotationStore(tmp_path)
    assert store.problem_ids == [f"p{i:04d}" for i in range(60)]
    assert write_index(tmp_path)["num_problems"] == 60
    assert_same(store[31], problem(31))
    assert not list(tmp_path.glob(".shard-*"))


def test_a_kill_between_writing_and_renaming_leaves_nothing_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    writer = AnnotationWriter(tmp_path, SETTINGS)
    writer.add(problem(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.flush()
    assert not list(tmp_path.glob("*shard-*"))
    del writer  # and with it the lock of its process
    write(tmp_path, range(2))
    assert len(AnnotationStore(tmp_path)) == 2 and not list(tmp_path.glob(".shard-*"))


def test_another_setting_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    with pytest.raises(UserError, match="seed=0, this run asks for seed=1"):
        AnnotationWriter(tmp_path, replace(SETTINGS, seed=1))
    with pytest.raises(UserError, match="backbone fingerprint"):
        AnnotationStore(tmp_path).require(backbone_fingerprint="0" * 64)


def test_shards_of_older_folders_are_those_of_the_same_settings() -> None:
    """The digest in the metadata of shards that were written before the settings had types."""
    assert SETTINGS.digest() == "2401e4a5781700e1"


def test_settings_are_the_same_after_a_journey_through_the_file(tmp_path: Path) -> None:
    settings = replace(SETTINGS, sampler={"name": "MonteCarloDropout", "sites": ("ffn", "residual")})
    AnnotationWriter(tmp_path, settings)
    AnnotationWriter(tmp_path, settings)


def test_a_shard_of_another_run_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", range(2))
    with AnnotationWriter(tmp_path / "b", replace(SETTINGS, seed=1)) as writer:
        writer.add(problem(5))
    os.rename(tmp_path / "b" / "shard-00000-000000.parquet", tmp_path / "a" / "shard-00000-000009.parquet")
    with pytest.raises(UserError, match="other settings"):
        AnnotationStore(tmp_path / "a")


@pytest.mark.parametrize("opener", [AnnotationStore, lambda folder: AnnotationWriter(folder, SETTINGS)])
def test_a_truncated_shard_is_named(tmp_path: Path, opener: object) -> None:
    write(tmp_path, range(4), shard_size=2)
    shard = tmp_path / "shard-00000-000001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match="shard-00000-000001.parquet is truncated"):
        opener(tmp_path)  # type: ignore[operator]
    shard.unlink()
    write(tmp_path, range(4))
    assert len(AnnotationStore(tmp_path)) == 4


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, range(1))
    shard = tmp_path / "shard-00000-000000.parquet"
    content = bytearray(shard.read_bytes())
    middle = len(content) // 4  # among the pages of the first columns
    content[middle] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        AnnotationStore(tmp_path)[0]


def test_a_shard_the_index_names_and_that_is_gone_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, range(4), shard_size=2)
    write_index(tmp_path)
    (tmp_path / "shard-00000-000000.parquet").unlink()
    with pytest.raises(UserError, match="lacks 1 shard"):
        AnnotationStore(tmp_path)


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no annotations"):
        AnnotationStore(tmp_path)
    AnnotationWriter(tmp_path, SETTINGS)
    with pytest.raises(UserError, match="no annotated problem"):
        AnnotationStore(tmp_path)


def test_a_record_of_another_shape_is_refused(tmp_path: Path) -> None:
    writer = AnnotationWriter(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="the settings say"):
        writer.add(replace(problem(1), latents=torch.zeros(N, T, D + 1)))
    with pytest.raises(ValueError, match="2 answers for 3 rollouts"):
        writer.add(replace(problem(1), answers=[1.0, 2.0]))


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    """The second is refused, whatever its number of ranks, until the first has ended; a killed one holds nothing."""
    first = AnnotationWriter(tmp_path, SETTINGS)
    with pytest.raises(UserError, match="Another run is writing annotations"):
        AnnotationWriter(tmp_path, SETTINGS)
    first.add(problem(1))
    first.close()
    write(tmp_path, range(3))
    assert len(AnnotationStore(tmp_path)) == 3


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_said_and_loses_nothing_that_is_finished(
    full: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(table: object, partial: Path, **options: object) -> None:
        Path(partial).write_bytes(b"half a shard")
        raise OSError(full, os.strerror(full))

    writer = AnnotationWriter(tmp_path, SETTINGS, shard_size=2)
    writer.add(problem(0)), writer.add(problem(1))
    with monkeypatch.context() as patch:
        patch.setattr("latent_tts.annotation.writer.pq.write_table", fails)
        writer.add(problem(2))
        with pytest.raises(
            UserError, match=f"cannot be written .{os.strerror(full)}.: mend that and give the same command"
        ):
            writer.add(problem(3))
        writer.close()
    assert not list(tmp_path.glob(".shard-*")) and len(AnnotationStore(tmp_path)) == 2
    write(tmp_path, range(5))
    assert AnnotationStore(tmp_path).problem_ids == [f"p{i:04d}" for i in range(5)]


def test_data_that_was_corrected_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    data = [Problem(f"p{i:04d}", f"What is {i} + 1?", i + 1.0) for i in range(5)]
    writer = AnnotationWriter(tmp_path, SETTINGS)
    writer.require_same_data(data)
    with pytest.raises(UserError, match="p0001 judged by the gold answer 2, and the data says 7 now"):
        writer.require_same_data([data[0], replace(data[1], gold=7.0), data[2]])
    with pytest.raises(UserError, match=r"holds 1 problem\(s\) that the data has no longer, such as p0002"):
        writer.require_same_data(data[:2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["values"]), "holds no column values"),
        (lambda table: table.drop_columns(["gold"]), "holds no column gold"),
        (lambda table: table.set_column(2, "gold", table["gold"].cast("string")), "holds gold as string"),
    ],
)
def test_a_shard_without_its_columns_is_refused(change: Callable, message: str, tmp_path: Path) -> None:
    write(tmp_path, range(2))
    shard = tmp_path / "shard-00000-000000.parquet"
    pq.write_table(change(pq.read_table(shard)), shard)
    for opener in (AnnotationStore, lambda folder: AnnotationWriter(folder, SETTINGS)):
        with pytest.raises(UserError, match=message):
            opener(tmp_path)


def test_a_folder_that_is_older_than_an_option_of_the_data_is_gone_on_with(tmp_path: Path) -> None:
    """The option is off by default; its shards and those after it are of one digest. Switched on, it is another annotation."""
    older = replace(SETTINGS, data='{"source": "x.jsonl"}')
    with AnnotationWriter(tmp_path, older) as writer:
        writer.add(problem(0))
    newer = replace(SETTINGS, data='{"leave_out_too_long": false, "source": "x.jsonl"}')
    with AnnotationWriter(tmp_path, newer) as writer:
        assert "p0000" in writer
        writer.add(problem(1))
    assert [found.problem_id for found in AnnotationStore(tmp_path)] == ["p0000", "p0001"]
    for other in ('{"leave_out_too_long": true, "source": "x.jsonl"}', '{"seed": 0, "source": "x.jsonl"}'):
        with pytest.raises(UserError, match=r"made with data\.(leave_out_too_long=False|seed=None), this run asks for"):
            AnnotationWriter(tmp_path, replace(SETTINGS, data=other))


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    (tmp_path / "index.json").write_text('{"sha')
    with pytest.raises(UserError, match="index.json cannot be read"):
        AnnotationStore(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_settings_of_any_content_are_read_or_refused(data: st.DataObject) -> None:
    """One field of a good file, or the whole of it, becomes anything at all: it is refused, or reads back as it stands."""
    stored: Any = SETTINGS.to_json()
    place = data.draw(st.sampled_from([*stored, *stored["extra"], "unheard of", "all of it"]))
    value = data.draw(JSON)
    if place == "all of it":
        stored = value
    else:
        (stored["extra"] if place in stored["extra"] else stored)[place] = value
    try:
        found = AnnotationSettings.from_json(stored)
    except ValueError:
        return
    again = AnnotationSettings.from_json(found.to_json())
    assert again.to_json() == found.to_json() and not again.differences(found)
    assert found.to_json() == stored or place in ("sampler", "extra")  # options that are not named are the defaults


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_shard_with_any_bytes_changed_is_read_as_written_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    if not folder.exists():
        write(folder, range(6))
    shard = folder / "shard-00000-000000.parquet"
    whole = shard.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    new = data.draw(st.binary(max_size=8))
    try:
        shard.write_bytes(whole[:at] + new + whole[data.draw(st.integers(at, min(len(whole), at + 16))) :])
        found = list(AnnotationStore(folder))
    except UserError:
        return
    finally:
        shard.write_bytes(whole)
    assert len(found) == 6
    for number, one in enumerate(found):
        assert_same(one, problem(number))


def test_shards_are_readable_through_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "store", range(5), shard_size=2)
    files = str(tmp_path / "store" / "shard-*.parquet")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["problem_id"][:] == [f"p{i:04d}" for i in range(5)]
    latents = torch.tensor(rows[3]["latents"]).view(N, T, D)
    assert torch.equal(latents[problem(3).mask], problem(3).latents[problem(3).mask])
    assert math.isnan(rows[3]["values"][-1]) and rows[3]["answers"][1] is None

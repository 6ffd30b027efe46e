"""Three gloo processes hear of each other, and put together what one process would have found."""

from __future__ import annotations

import pickle
import socket
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import LightningModule
from torch.distributed.constants import default_pg_timeout

from callbacks.ranks_wait import RanksWait
from latent_tts.errors import UserError
from latent_tts.evaluation.prediction_files import RecordWriter, prediction_path
from latent_tts.evaluation.ranks import all_of, done_by_all, parts_for_first
from latent_tts.evaluation.record_reading import agreed
from tests.records import SEARCH, make_record
from tests.test_run_summary import BYTE_LIMITS, RECORDS, empty, held_content

pytestmark = pytest.mark.slow


def refuse_on(ranks: tuple[int, ...]) -> str:
    if dist.get_rank() in ranks:
        raise UserError(f"rank {dist.get_rank()} cannot: mend it.")
    return f"done by {dist.get_rank()}"


def sentence(ranks: tuple[int, ...]) -> str:
    try:
        return str(done_by_all(lambda: refuse_on(ranks)))
    except UserError as error:
        return str(error)


def put_together(folder: str, byte_limit: int) -> tuple[str, Any]:
    """Each rank's share of the files, as at the end of a run: the metrics of all, and on rank 0 what a report holds."""
    files = agreed([prediction_path(Path(folder), dist.get_rank())])
    whole = empty(byte_limit)
    share = whole.empty_part().add_all(files.read(files.span(dist.get_rank(), 3)))
    assert whole.held is not None and share.held is not None
    found = str(share.metrics.compute())
    for part in parts_for_first(share.held):
        whole.held.extend(part)
    return found, held_content(whole.held) if dist.get_rank() == 0 else None


def waited_for_the_last(rank: int, given: timedelta) -> bool:
    """Whether ranks that wait for a second at most meet one that comes later; `given` is the strategy's own time."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1))
    trainer: Any = SimpleNamespace(world_size=3, strategy=SimpleNamespace(_timeout=given))
    RanksWait().setup(trainer, LightningModule(), "predict")
    if rank == 2:
        time.sleep(2.0)
    try:
        dist.barrier()
    except RuntimeError:
        return False
    return True


def work(rank, port, folder):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, rank=rank, world_size=3, timeout=timedelta(seconds=60))
    found = {
        "all": all_of({"rank": rank}),
        "sentences": [sentence(ranks) for ranks in ((), (1,), (2, 1), (0, 2))],
        "put together": [put_together(folder, limit) for limit in BYTE_LIMITS],
        "waited": waited_for_the_last(rank, default_pg_timeout),
        "waited with a time given": waited_for_the_last(rank, timedelta(seconds=1)),  # last: the connections are broken
    }
    (Path(folder) / f"{rank}.found").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


def test_ranks_hear_of_each_other_and_put_together_what_one_finds(tmp_path, monkeypatch):
    monkeypatch.setattr("latent_tts.evaluation.report.html.payload._PAGE_CHARACTERS", 1500)
    for rank, records in enumerate((RECORDS[:20], RECORDS[20:120], RECORDS[120:])):
        writer = RecordWriter(prediction_path(tmp_path, rank))
        for record in records:
            writer.append(record)
        writer.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = mp.start_processes  # type: ignore[attr-defined]
    start(work, args=(port, str(tmp_path)), nprocs=3, start_method="fork")  # a fresh one would spend seconds importing
    ranks = [pickle.loads((tmp_path / f"{rank}.found").read_bytes()) for rank in range(3)]
    everybody = str([f"done by {rank}" for rank in range(3)])
    first = ["rank 1 cannot: mend it.", "rank 1 cannot: mend it.", "rank 0 cannot: mend it."]
    alone = [empty(limit).add_all(RECORDS) for limit in BYTE_LIMITS]
    for found in ranks:
        assert found["all"] == [{"rank": rank} for rank in range(3)]
        assert found["waited"] and not found["waited with a time given"]
        assert found["sentences"] == [everybody, *first]
        assert [metrics for metrics, _ in found["put together"]] == [str(one.metrics.compute()) for one in alone]
    for (_, held), one in zip(ranks[0]["put together"], alone, strict=True):
        assert one.held is not None and held == held_content(one.held)


def test_a_process_alone_is_all_there_is():
    record = make_record(0, searches=(SEARCH,))
    assert all_of(record) == done_by_all(lambda: record) == list(parts_for_first(record)) == [record]

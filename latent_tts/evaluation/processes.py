"""Work in several processes of this machine, which are copies of this one and end with it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from latent_tts.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def usable_processes() -> int:
    """How many can work at once: the cores that this process may use; 1 where processes cannot be copied while they run.

    Copying is safe on Linux alone: the libraries of macOS refuse to work in a copy, and Windows makes none.
    """
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0))


def in_processes(work: Callable[[Task], Result], tasks: Sequence[Task]) -> Generator[Result]:
    """What `work` makes of every task, in order, each in a process of its own; close the iterator to end them early.

    A process has one thread of torch, as data loaders' have: a copy has none of the threads of the original.

    Args:
        work: Called in a copy of this process, so it sees what this one has in memory. Its result is pickled.
        tasks: What it is called with.

    Raises:
        UserError: A process raised it, or was killed. Any other error comes with its traceback as the cause.
    """
    context = multiprocessing.get_context("fork")
    started: list[tuple[Any, Connection]] = []
    try:
        for task in tasks:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(work, task, there), daemon=True)
            process.start()
            there.close()  # so that the end of the process is the end of the pipe
            started.append((process, here))
        for process, here in started:
            yield _result(process, here)
    finally:
        for process, _ in started:
            process.terminate()
        for process, here in started:
            process.join()
            here.close()


def _work(work: Callable[[Task], Result], task: Task, there: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes to all: the original ends its copies
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        answer: Any = (work(task), None, "")
    except Exception as error:
        answer = (None, error, traceback.format_exc())
    there.send_bytes(pickle.dumps(answer))  # plain: torch's own way leaves tensors in files for the other side to open


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _result(process: Any, here: Connection) -> Any:
    try:
        result, error, trace = pickle.loads(here.recv_bytes())
    except EOFError:
        process.join()
        raise UserError(
            f"A process that shared the work has ended before it was done (exit code {process.exitcode}): if memory was full, "
            "make room, and run the same command again."
        ) from None
    if isinstance(error, UserError):
        raise error
    if error is not None:
        raise error from RuntimeError(trace)
    return result

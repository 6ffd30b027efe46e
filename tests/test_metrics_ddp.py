"""Three gloo processes with uneven numbers of problems give what one process gives, to the bit."""

from __future__ import annotations

import json
import socket
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from latent_tts.aggregation import BestOfN, MajorityVoting, WeightedVoting
from latent_tts.evaluation.summary import EvaluationMetrics
from latent_tts.metrics import (
    Accuracy,
    Coverage,
    Diversity,
    InvalidAnswerRate,
    PairedDifference,
    PairwiseRankingAccuracy,
    RecallAt1,
    ScoreCalibration,
    StepScoreCorrelation,
)
from tests.records import SEARCH, make_record

pytestmark = pytest.mark.slow

NUM_PROBLEMS = 11


def results_over(problems):
    """Every metric, updated with the given problems of one fixed data set; all results as one flat array."""
    rng = np.random.default_rng(0)
    scores, values = (torch.from_numpy(rng.random((NUM_PROBLEMS, 5, 3))) for _ in range(2))
    correct = torch.from_numpy(rng.random((NUM_PROBLEMS, 5)) < 0.4)
    lengths = torch.from_numpy(rng.integers(1, 4, (NUM_PROBLEMS, 5, 1)))
    answers = [[0.0 if c else None for c in row] for row in correct.tolist()]
    mask = torch.arange(3) < lengths
    coverage, accuracy, gain = Coverage([1, 2, 5]), Accuracy([1, 5, 8]), PairedDifference([1, 5, 8])
    invalid, diversity = InvalidAnswerRate(), Diversity(3)
    recall, pairwise = RecallAt1(), PairwiseRankingAccuracy(3)
    calibration, correlation = ScoreCalibration(4), StepScoreCorrelation(3)
    for i in problems:
        one = slice(i, i + 1)
        coverage.update(correct[one])
        accuracy.update(scores[one, 0])
        invalid.update(answers[one])
        diversity.update(values[one, 0])
        recall.update(scores[one], correct[one], mask[one], answers[one])
        pairwise.update(scores[one], correct[one], mask[one])
        calibration.update(scores[one], values[one], mask[one])
        correlation.update(scores[one], values[one], mask[one])
        gain.update(scores[one, 0], scores[one, 0, 0])
    flat = [x for metric in (coverage, accuracy, gain) for interval in metric.compute().values() for x in interval]
    flat.append(invalid.compute().item())
    for metric in (diversity, recall, pairwise, calibration, correlation):
        flat += [x for value in metric.compute().values() for x in value.flatten().tolist()]
    return np.array(flat)


def summary_over(problems):
    """The content of metrics.json for the records of these problems."""
    metrics = EvaluationMetrics(4, 3, [MajorityVoting(), BestOfN(), WeightedVoting()], [SEARCH])
    for i in problems:
        metrics.update(make_record(i, searches=(SEARCH,)))
    return json.dumps(metrics.compute())


def work(rank, port, splits, queue):
    """One process of three: for every split, its share of the problems, then the synchronised results."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, rank=rank, world_size=3, timeout=timedelta(seconds=60))
    queue.put((rank, [(results_over(shares[rank]), summary_over(shares[rank])) for shares in splits]))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # of a share without a problem
def test_three_processes_equal_one_however_uneven_their_shares():
    splits = [
        (range(5), range(9, 11), range(5, 9)),
        (range(0), range(11), range(0)),
        (range(0, 11, 3), [1, 10, 4, 7], [8, 2, 5]),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = mp.get_context("fork").SimpleQueue()  # a fresh interpreter would spend seconds importing
    start = torch.multiprocessing.start_processes  # type: ignore[attr-defined]
    processes = start(work, args=(port, splits, queue), nprocs=3, join=False, start_method="fork")
    while not processes.join():  # raises what a process raised
        pass
    alone, summary = results_over(range(NUM_PROBLEMS)), summary_over(range(NUM_PROBLEMS))
    for _ in range(3):
        _, results = queue.get()
        for result, summed in results:
            assert np.array_equal(result, alone, equal_nan=True)
            assert summed == summary

"""A round of the soak: a run that is killed goes on to the files of one that was not, and no process is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.kills import Soak

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc"),
]


def test_an_evaluation_of_two_processes_outlives_a_kill(tmp_path):
    """It goes on with another number of processes, and ends with the records and metrics of one process."""
    tally = Soak(tmp_path, seed=3, names=["evaluation"], processes=[2]).run(kills=1, minutes=10.0)
    assert tally.kills == 1 and tally.compared and tally.is_clean, tally.summary()

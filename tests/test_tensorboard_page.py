"""TensorBoard in a browser, on the folders of an evaluation and of a training: all dashboards show them without an error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from latent_tts.evaluation.report.figure_files import save_figures
from latent_tts.evaluation.report.figures import figures
from latent_tts.evaluation.report.tensorboard import write_tensorboard
from tests.browser import BROWSER, MISSING, shown_by
from tests.test_tensorboard import DIAGNOSIS, add_live_point, make_metrics, make_records
from tests.test_training_curves import fitted
from tests.training import make_data, make_module, write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason=MISSING)]

SHOWN = {
    "timeseries": ["evaluation", "training", "figures", "final", "live", "scores", "train", "val", "Step"],
    "custom_scalars": ["Results", "all against rollouts k", "While it runs", "Matches (3)"],
    "histograms": ["scores", "step_0_wrong_step_1_right"],
    "text": ["problems/1", "majority_voting", "To try: More noise."],
    "text&tagFilter=val": ["val/answers", "question", "gold", "Ann has"],
    "hparams": ["num_rollouts", "final/greedy", "evaluation", "training/tensorboard"],
}


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0", "--load_fast", "false"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = next(line for line in server.stderr if " at http://" in line)
            yield line.split(" at ")[1].split()[0]
        finally:
            server.kill()


def test_every_dashboard_shows_an_evaluation_and_a_training_without_an_error(
    drawn_figures: None, tmp_path: Path
) -> None:
    runs, records = tmp_path / "runs", make_records()
    metrics = make_metrics(records)
    add_live_point(runs / "evaluation")
    saved = save_figures({"accuracy": figures(metrics, records)["accuracy"]}, tmp_path / "figures")
    pictures = {name: tmp_path / path for name, path in saved.items()}
    write_tensorboard(metrics, pictures, runs / "evaluation", records, [DIAGNOSIS])
    model = write_tiny_model(tmp_path / "model")
    fitted(runs / "training", make_module(model), make_data(tmp_path, batch_size=8), max_epochs=1)
    with tensorboard(runs) as address:
        pages = {f"{address}#{tab}": words for tab, words in SHOWN.items()}
        found, errors = shown_by(pages, tmp_path / "profile")
    missing = {page: [word for word in words if word not in found[page]] for page, words in pages.items()}
    assert not any(missing.values()), missing
    assert not errors, errors

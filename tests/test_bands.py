"""Acceptance bands of the published checkpoints: made-up metrics in and out of them, and studies that name what the bands do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy import stats

from commands.bands import BANDS
from commands.bands import main as print_bands
from commands.study import read_study
from latent_tts.errors import UserError
from latent_tts.evaluation.chapter.bands import bands_of, read_bands
from tests.metrics_json import make_metrics_json

ROOT = Path(__file__).resolve().parents[1]


def made_up(folder: Path, num_problems: int = 1319, greedy: float = 0.35) -> None:
    """Metrics of N = 4 with this greedy accuracy, coverage@4 of 0.41 and voting@4 of 0.5."""
    metrics = make_metrics_json(4, 0.5) | {"num_problems": num_problems}
    metrics["accuracy"] |= {"greedy": greedy, "majority_voting": {"1": 0.3, "2": 0.3, "4": 0.5}}
    metrics["coverage"] |= {"4": 0.41}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gsm8k.json").write_text(json.dumps(metrics))


def test_a_band_is_the_score_interval_of_the_published_share():
    """454 of 1,319 problems are 34.42 %: scipy's score interval with continuity correction."""
    greedy, *_ = bands_of({"problems": 1319, "greedy": 34.42})
    reference = stats.binomtest(454, 1319).proportion_ci(method="wilsoncc")
    assert (greedy.low, greedy.high) == pytest.approx((reference.low, reference.high), abs=5e-4)
    codi = bands_of({"problems": 1319, "greedy": [42.1, 43.7]})[0]
    assert codi.published == pytest.approx((0.421, 0.437)) and codi.low < 0.40 and codi.high > 0.46


def test_figures_in_and_out_of_their_bands_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    made_up(tmp_path / "published-coconut")
    print_bands("published-coconut", ROOT / BANDS, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    by_key = {line.split()[1]: line for line in lines if line.startswith("gsm8k")}
    assert by_key["greedy"].endswith("ours 35.00 in") and by_key["coverage@4"].endswith("ours 41.00 in")
    assert by_key["majority_voting@4"].endswith("ours 50.00 OUT") and "published 32.83" in by_key["majority_voting@4"]
    assert by_key["coverage@64"].endswith("not measured")
    outside = sum(line.endswith(" OUT") for line in lines)
    assert lines[-1] == f"{outside} figures lie outside their bands."
    made_up(tmp_path / "published-coconut", greedy=0.25)
    print_bands("published-coconut", ROOT / BANDS, tmp_path)
    assert f"{outside + 1} figures lie outside" in capsys.readouterr().out


def test_other_problems_and_unknown_studies_are_refused(tmp_path):
    made_up(tmp_path / "published-codi", num_problems=500)
    with pytest.raises(UserError, match="of 500 problems, and the published figures are of 1,319"):
        print_bands("published-codi", ROOT / BANDS, tmp_path)
    with pytest.raises(UserError, match="no figures of 'tiny'; there are: published-coconut"):
        print_bands("tiny", ROOT / BANDS, tmp_path)
    with pytest.raises(UserError, match="no bands that can be read"):
        print_bands("tiny", tmp_path / "none.yaml", tmp_path)


def test_every_run_with_bands_is_a_step_of_a_study_that_exists():
    for study, runs in read_bands(ROOT / BANDS).items():
        steps = read_study(ROOT / "configs" / "published" / f"{study}.yaml")
        assert set(runs) <= {step.name for step in steps}
        assert all(bands_of(published) for published in runs.values())

"""Latent against written reasoning: the written answer is in every record once, in the metrics and in the report."""

from __future__ import annotations

import json
from statistics import mean

import pytest

from commands.evaluate import EvaluationCLI
from commands.guard import main_guard
from latent_tts.aggregation import MajorityVoting
from latent_tts.backbones.loading import load_backbone
from latent_tts.engine.engine import RolloutEngine
from latent_tts.evaluation import report
from latent_tts.evaluation.record_reading import read_records
from latent_tts.evaluation.summary import EvaluationMetrics
from tests.records import make_record

pytestmark = pytest.mark.slow


def evaluate(*args: str) -> int:
    return main_guard(lambda: EvaluationCLI(args).run())


@pytest.fixture(scope="module")
def writer(tiny_backbone, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("written") / "writer"
    tiny_backbone("cot", "llama", num_latents=0).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def options(tiny_checkpoint, problem_file) -> list[str]:
    return [
        f"--model.backbone={tiny_checkpoint}",
        f"--data.source={problem_file}",
        "--data.batch_size=5",
        "--model.num_rollouts=2",
        "--model.max_answer_tokens=4",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]


@pytest.fixture(scope="module")
def written(options, writer) -> list[str]:
    """The same beside a writer."""
    return [*options, f"--model.written={writer}", "--model.max_written_tokens=7"]


def records_of(output):
    return {
        record.problem_id: record.to_json() for record in read_records([output / "predictions" / "rank-00000.jsonl"])
    }


def test_every_record_holds_the_chain_the_writer_decodes_greedily_and_a_resumed_run_keeps_it(written, writer, tmp_path):
    assert evaluate(*written, "--data.limit=9", f"--output={tmp_path}") == 0
    lines = (tmp_path / "predictions" / "rank-00000.jsonl").read_text()
    assert evaluate(*written, f"--output={tmp_path}") == 0
    assert (tmp_path / "predictions" / "rank-00000.jsonl").read_text().startswith(lines)
    records = records_of(tmp_path)
    assert len(records) == 24
    engine = RolloutEngine(load_backbone(writer), max_answer_tokens=7)
    for record in records.values():
        chain = engine.rollout([record["question"]], num_rollouts=1)
        assert record["written"] == {
            "text": chain.texts[0][0],
            "answer": chain.answers[0][0],
            "correct": chain.answers[0][0] == record["gold"],
            "token_steps": int(chain.token_steps[0]),
        }
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["accuracy"]["written"] == pytest.approx(
        mean(r["written"]["correct"] for r in records.values()), abs=1e-6
    )
    assert metrics["token_steps"]["written"] == pytest.approx(
        mean(r["written"]["token_steps"] for r in records.values()), rel=1e-5
    )
    assert "| written reasoning |" in (tmp_path / "report.md").read_text()


def test_written_reasoning_can_be_evaluated_by_itself(options, writer, tmp_path):
    """As the backbone: with dropout while it writes its chains differ; there are no latents to be diverse."""
    dropout = [
        "--model.sampler=MonteCarloDropout",
        "--model.sampler.p=0.3",
        "--model.sampler.scope=prompt+latent+answer",
    ]
    own = [f"--model.backbone={writer}", *dropout]
    assert evaluate(*options, *own, "--data.limit=6", f"--output={tmp_path}") == 0
    records = records_of(tmp_path)
    assert any(len({rollout["text"] for rollout in record["rollouts"]}) > 1 for record in records.values())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["diversity"] == {"mean": None, "per_step": []}


def test_another_writer_is_another_configuration(options, written, tmp_path, capsys):
    assert evaluate(*written, "--data.limit=2", f"--output={tmp_path}") == 0
    assert evaluate(*options, "--data.limit=2", f"--output={tmp_path}") == 2
    assert "model.written.fingerprint was" in capsys.readouterr().err


def test_records_without_a_written_answer_are_counted_as_before():
    metrics = EvaluationMetrics(4, 3, [MajorityVoting()])
    metrics.update(make_record(0))
    found = metrics.compute() | {"throughput": {"rollouts_per_second": None}}
    assert "written" not in found["accuracy"] and "written" not in found["token_steps"]
    assert "written" not in report.markdown(found, {})


def test_accuracy_cost_interval_and_difference_to_voting_are_those_of_the_records():
    """Of 8 records the written answers of number 0 and 4 are right, after 60 to 67 positions."""
    metrics = EvaluationMetrics(4, 3, [MajorityVoting()], written=True)
    for seed in range(8):
        metrics.update(make_record(seed, written=True))
    found = metrics.compute()
    assert found["accuracy"]["written"] == 0.25 and found["token_steps"]["written"] == 63.5
    low, high = found["confidence_interval"]["written"]
    assert low <= 0.25 <= high
    voting = found["accuracy"]["majority_voting"]["4"]
    assert found["difference_to_majority_voting"]["written"]["mean"] == pytest.approx(0.25 - voting, abs=1e-6)
    rows = {row.strategy.key: row for row in report.results(found)}
    assert list(rows)[:3] == ["greedy", "written", "single"]
    assert rows["written"].token_steps == 63.5
    report.figures(found)

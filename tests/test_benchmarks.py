"""The benchmarks compare like with like: the straightforward implementations compute what ours do, and work is counted right."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import (
    annotation,
    annotation_budget,
    latent_use,
    overhead,
    precision,
    refill,
    reward_training,
    rollouts,
    sampler_sweep,
    scaling,
)
from benchmarks.common import SIZES, random_coconut
from latent_tts.engine.engine import RolloutEngine
from latent_tts.sampling import Deterministic

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def backbone():
    with torch.random.fork_rng():
        made = random_coconut("tiny", num_latents=3).requires_grad_(False)
    made.eos_token_id = -1  # no answer ends early
    return made


@torch.inference_mode()
def test_the_straightforward_rollouts_are_those_of_the_engine(backbone):
    prompts = torch.randint(1, 256, (2, 9), generator=torch.Generator().manual_seed(0)).tolist()
    backbone.encode_prompts = lambda questions: prompts
    ours = RolloutEngine(backbone, Deterministic(), max_answer_tokens=5).rollout(["a", "b"], 2)
    theirs = rollouts.straightforward(backbone, prompts, 2, 5, sigma=0.0)
    assert torch.equal(ours.answer_ids.flatten(0, 1), theirs)


@torch.inference_mode()
def test_the_straightforward_continuations_are_those_of_the_engine(backbone):
    prompt = torch.randint(1, 256, (9,), generator=torch.Generator().manual_seed(1))
    backbone.encode_prompts = lambda questions: [prompt.tolist()]
    ours = RolloutEngine(backbone, Deterministic(), max_answer_tokens=5).rollout(["a"], 1)
    embeds = backbone.embed(prompt)
    job = {"num_latents": 3, "sigma": 0.0, "answer_tokens": 5}
    thoughts = annotation.continue_from(backbone, embeds.unsqueeze(0), 0, job)
    torch.testing.assert_close(thoughts[0], ours.latents[0, 0], rtol=1e-4, atol=1e-5)
    again = annotation.continue_from(backbone, torch.cat([embeds, thoughts[0, :1]]).expand(4, -1, -1), 1, job)
    torch.testing.assert_close(again, thoughts[:, 1:].expand(4, -1, -1), rtol=1e-4, atol=1e-5)


def test_operations_of_a_rollout_by_hand():
    """Tiny: 4 blocks of 12 matrices 256 x 256, 768 tokens. Two problems of 10 tokens, 3 rollouts of 6 thoughts, 8 tokens."""
    assert SIZES["tiny"] == (4, 256, 4, 768)
    job = {"size": "tiny", "problems": 2, "prompt_length": 10, "num_rollouts": 3, "num_latents": 6, "answer_tokens": 8}
    positions, tokens = 2 * 10 + 6 * (6 + 1 + 7), 6 * 8
    assert rollouts.useful_flops(job) == positions * 2 * 4 * 12 * 256**2 + tokens * 2 * 256 * 768


def table_of(module: ModuleType, arguments: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The rows that a benchmark writes."""
    out = folder / "table.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", "--device", "cpu", "--out", str(out), *arguments.split()])
    with torch.random.fork_rng():
        module.main()
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return rows


@pytest.mark.parametrize(
    ("module", "arguments", "varied"),
    [
        (rollouts, "--num-rollouts 2", {"N": 2}),
        (annotation, "--num-rollouts 1 --num-continuations 2", {"M": 2}),
        (reward_training, "--num-rollouts 4 --rollouts 4 --prompt-length 10", {"N": 4}),
    ],
    ids=["rollouts", "annotation", "reward_training"],
)
def test_the_comparisons_write_their_table(module, arguments, varied, tmp_path, monkeypatch):
    (row,) = table_of(module, f"--size tiny --repeats 1 --threads 1 {arguments}", tmp_path, monkeypatch)
    assert varied.items() <= row.items()
    assert row["times faster"] > 0 and row["share of GEMM"] > 0
    assert row["ours MiB"] > 0 and row["reference MiB"] > 0


FEW = "--templates 48 10 --problems 4"


@pytest.mark.parametrize(
    ("module", "arguments", "first_column"),
    [
        (latent_use, f"--backbone checkpoints/tiny-codi {FEW}", ["6, as thought", "none", "6, zeros"]),
        (precision, f"{FEW} --num-rollouts 2", ["float32", "bfloat16", "mixed"]),
        (sampler_sweep, f"{FEW} --num-rollouts 2 --sigma 1 --p 0.1", ["Deterministic()"]),
        (refill, "--problems 2 --num-rollouts 4 --width 64 --layers 1", [2]),
        (overhead, "--num-rollouts 2 4 --problems 2 --batch-size 2", [2, 4]),
        (annotation_budget, f"{FEW} --sigma 2 --num-rollouts 8 --num-continuations 2 4", [8, 8]),
    ],
    ids=["latent_use", "precision", "sampler_sweep", "refill", "overhead", "annotation_budget"],
)
def test_the_other_benchmarks_write_theirs(module, arguments, first_column, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = table_of(module, arguments, tmp_path, monkeypatch)
    assert [next(iter(row.values())) for row in rows][: len(first_column)] == first_column


def test_every_benchmark_is_run_here():
    tools = {"__init__", "common", "comparison", "timing"}
    here = {
        "rollouts",
        "annotation",
        "reward_training",
        "latent_use",
        "precision",
        "sampler_sweep",
        "refill",
        "scaling",
        "overhead",
    }
    assert {file.stem for file in (ROOT / "benchmarks").glob("*.py")} - tools == here | {"annotation_budget"}


def test_a_plan_is_arithmetic_on_what_a_record_costs():
    """1,000 problems x 10 rollouts by 4 devices that draw 5 a second: 500 s each, and 250 records of 0.12 s; 2 MB on disk."""
    costs = scaling.Costs(line_bytes=2000.0, write=0.03, read=0.01, choose=0.02, sum_up=0.05, hold=0.01)
    plan = scaling.Plan(problems=1000, rollouts=10, latents=6, width=8, ranks=4, rate=5.0)
    found = {row["quantity"]: row["value"] for row in scaling.table(plan, costs)}
    assert found["records, TB"] == pytest.approx(2e-6)
    assert found["drawing, h"] == pytest.approx(500 / 3600)
    assert found["share of the host in drawing, %"] == pytest.approx(6.0)
    assert found["latents if kept in bfloat16, TB"] == pytest.approx(2e-12 * 10_000 * 48)
    assert found["report from records, one process, h"] == pytest.approx(70 / 3600)
    assert found["a resume reads its share, h"] == pytest.approx(2.5 / 3600)
    real = scaling.measured(4, 3, 2)
    assert real.line_bytes > 500 and min(vars(real).values()) >= 0

"""The benchmarks compare like with like: the straightforward implementations compute what ours do, and work is counted right."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import annotation, rollouts
from benchmarks.common import SIZES, random_coconut
from latent_tts.engine.engine import RolloutEngine
from latent_tts.sampling import Deterministic


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


@pytest.mark.parametrize(
    ("module", "arguments", "varied"),
    [(rollouts, ["--num-rollouts", "2"], {"N": 2}), (annotation, ["--num-rollouts", "1", "--num-continuations", "2"], {"M": 2})],
    ids=["rollouts", "annotation"],
)  # fmt: skip
def test_the_commands_write_their_table(module, arguments, varied, tmp_path, monkeypatch):
    out = tmp_path / "table.json"
    common = ["--size", "tiny", "--repeats", "1", "--threads", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["benchmark", *common, *arguments])
    module.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert varied.items() <= row.items()
    assert row["times faster"] > 0 and row["share of GEMM"] > 0
    assert row["ours MiB"] > 0 and row["reference MiB"] > 0

"""Agreement with what an independent implementation computed for the reference checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from latent_tts.backbones import load_backbone
from latent_tts.engine.engine import RolloutEngine


@pytest.fixture(params=["coconut", "codi", "colar"])
def case(request, reference):
    folder = reference / request.param
    expected = json.loads((folder / "expected.json").read_text()) | load_file(folder / "expected.safetensors")
    latents = expected["max_latents"] if request.param == "colar" else expected["num_latents"]
    counts = expected["num_latents"] if request.param == "colar" else [latents] * len(expected["questions"])
    return load_backbone(folder, num_latents=latents), expected, counts


def test_prompt_ids_match(case):
    backbone, expected, _ = case
    for ids, row, mask in zip(
        backbone.encode_prompts(expected["questions"]), expected["prompt_ids"], expected["prompt_mask"], strict=True
    ):
        assert ids == row[mask.bool()].tolist()


@pytest.mark.parametrize("batch_size", [1, 8])
def test_latents_and_answers_match(case, batch_size):
    backbone, expected, counts = case
    width, questions = expected["prompt_ids"].shape[1], expected["questions"]
    compared = 0
    for start in range(0, len(questions), batch_size):
        rows = range(start, start + batch_size)
        engine = RolloutEngine(backbone, max_answer_tokens=10)
        rollouts = engine.rollout([questions[row] for row in rows], num_rollouts=1)
        for b, row in enumerate(rows):
            if counts[row] is None:  # the reference ran out of steps before it could answer
                continue
            assert rollouts.num_latents[b, 0] == counts[row]
            answer = expected["sequences"][row, width + counts[row] + 1 :][:10].tolist()
            assert rollouts.answer_ids[b, 0, : len(answer)].tolist() == answer
            if "latent_thoughts" in expected:
                torch.testing.assert_close(
                    rollouts.latents[b, 0], expected["latent_thoughts"][row], rtol=1e-4, atol=1e-4
                )
            compared += 1
    assert compared >= 5

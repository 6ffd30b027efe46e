"""Rollouts on every device against the method written out slowly on the CPU."""

from __future__ import annotations

import pytest

from latent_tts.engine.engine import RolloutEngine
from tests.naive import naive_rollout
from tests.test_rollout import KINDS_AND_LAYOUTS, SAMPLERS

pytestmark = pytest.mark.slow

CASES = [(kind, layout, "agn") for kind, layout in KINDS_AND_LAYOUTS]
# the other samplers by turns with a fixed and an open number of thoughts, on either layout
CASES += [
    (("coconut", "gpt2"), ("colar", "llama"))[i % 2] + (name,) for i, name in enumerate(sorted({*SAMPLERS} - {"agn"}))
]


@pytest.mark.parametrize(("kind", "layout", "sampler"), sorted(CASES))
def test_rollouts_equal_recomputing_everything_on_the_host(kind, layout, sampler, place, tiny_backbone, questions):
    host = tiny_backbone(kind, layout, num_latents=3)
    rollouts = RolloutEngine(place.put(host), SAMPLERS[sampler], max_answer_tokens=4).rollout(questions[:2], 2, seed=7)
    for b, question in enumerate(questions[:2]):
        naive = naive_rollout(host, SAMPLERS[sampler], question, 1, seed=7, max_answer_tokens=4)
        count = len(naive.latents)
        assert int(rollouts.num_latents[b, 1]) == count
        place.close(rollouts.latents[b, 1, :count], naive.latents)
        ids = naive.answer_ids + [host.pad_token_id] * (4 - len(naive.answer_ids))
        assert rollouts.answer_ids[b, 1].tolist() == ids

"""Fingerprints change with all that they cover and with nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from latent_tts import load_backbone, load_reward_model
from latent_tts.backbones.fingerprint import fingerprint

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
WEIGHTS = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([1, 2])}


def test_a_fingerprint_worked_out_by_hand():
    """Names in order; each with type, shape and bytes, then the texts. Stored fingerprints rely on this very content."""
    one, two = (1).to_bytes(8, "little"), (2).to_bytes(8, "little")
    content = b"a torch.int64 (2,)" + one + two + b"b torch.float32 (2, 3)"
    content += b"".join(torch.tensor(float(i)).numpy().tobytes() for i in range(6)) + b"text"
    assert fingerprint(WEIGHTS, "te", "xt") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"c": WEIGHTS["b"], "a": WEIGHTS["a"]},
        WEIGHTS | {"b": WEIGHTS["b"].view(3, 2)},
        WEIGHTS | {"b": WEIGHTS["b"].nextafter(torch.tensor(9.0))},
        WEIGHTS | {"a": WEIGHTS["a"].int()},
        {"a": WEIGHTS["a"]},
    ],
    ids=["name", "shape", "last bit", "type", "one less"],
)
def test_every_difference_shows(other):
    assert fingerprint(other) != fingerprint(WEIGHTS)


def test_order_and_memory_layout_do_not_show():
    turned = {"a": WEIGHTS["a"], "b": WEIGHTS["b"].t().contiguous().t()}
    assert fingerprint(turned) == fingerprint(WEIGHTS)


def test_the_shipped_reward_model_is_that_of_the_shipped_backbone():
    reward_model = load_reward_model(CHECKPOINTS / "tiny-latent-rm")
    assert reward_model.backbone_fingerprint == load_backbone(str(CHECKPOINTS / "tiny-coconut")).fingerprint()

"""Differences to a base: signs and scales against loops, and a stored backbone that comes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from latent_tts.backbones.codi import Codi
from latent_tts.backbones.delta import compress, decompress, lost_share, main, restore, store
from latent_tts.backbones.loading import load_backbone
from latent_tts.backbones.training import load_for_training
from latent_tts.cli import main_guard
from latent_tts.errors import UserError
from latent_tts.rollout import RolloutEngine
from tests.training import write_tiny_model


def test_restored_weights_are_the_base_plus_the_signed_mean_distance_of_their_row():
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(5, 11, generator=generator), "norm": torch.ones(11)}
    trained = {"w": base["w"] + torch.randn(5, 11, generator=generator), "norm": torch.full((11,), 1.5)}
    restored = decompress(compress(trained, base), base)
    for row in range(5):
        changes = [float(trained["w"][row, i] - base["w"][row, i]) for i in range(11)]
        scale = sum(abs(change) for change in changes) / 11
        for i, change in enumerate(changes):
            expected = float(base["w"][row, i]) + (scale if change > 0 else -scale)
            assert float(restored["w"][row, i]) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(restored["norm"], trained["norm"])


def test_no_other_scale_of_a_row_comes_closer():
    generator = torch.Generator().manual_seed(1)
    base, change = torch.zeros(1, 64), torch.randn(1, 64, generator=generator)
    best = lost_share({"w": change}, compress({"w": change}, {"w": base}), {"w": base})
    for factor in (0.9, 0.99, 1.01, 1.1):
        delta = compress({"w": change}, {"w": base})
        delta["w.scale"] *= factor
        assert lost_share({"w": change}, delta, {"w": base}) > best


def test_equal_steps_in_either_direction_lose_nothing():
    base = {"w": torch.zeros(3, 9)}
    trained = {"w": torch.where(torch.arange(27).view(3, 9) % 2 == 0, 0.25, -0.25)}
    delta = compress(trained, base)
    assert lost_share(trained, delta, base) == 0.0
    assert torch.equal(decompress(delta, base)["w"], trained["w"])


@pytest.fixture
def codi(tmp_path) -> Codi:
    """A CODI of moved weights, with a projector and new tokens, beside the base it was made from."""
    write_tiny_model(tmp_path / "base")
    backbone = load_for_training(Codi, tmp_path / "base", config={"projector": True})
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in backbone.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator).sign()
    backbone.save_pretrained(tmp_path / "trained")
    return backbone


def test_stored_backbone_comes_back_with_its_answers(codi, tmp_path, questions, monkeypatch):
    for words in (
        ["store", "trained", "--out", "delta"],
        ["restore", "delta", "--out", "restored", "--dtype", "float32"],
    ):
        monkeypatch.setattr("sys.argv", ["delta", *words, "--base", "base"])
        monkeypatch.chdir(tmp_path)
        assert main_guard(main) == 0
    trained, restored = load_backbone(tmp_path / "trained"), load_backbone(tmp_path / "restored")
    assert restored.metadata() == trained.metadata()
    expected, found = (RolloutEngine(b, max_answer_tokens=8).rollout(questions, 1) for b in (trained, restored))
    assert found.texts == expected.texts
    torch.testing.assert_close(found.latents, expected.latents, rtol=1e-3, atol=1e-4)
    size = {name: (tmp_path / name).stat().st_size for name in ("delta/delta.safetensors", "trained/model.safetensors")}
    assert size["delta/delta.safetensors"] < size["trained/model.safetensors"] / 2


def test_new_tokens_and_own_modules_are_stored_as_they_are():
    generator = torch.Generator().manual_seed(3)
    trained = {
        "embed": torch.randn(6, 10, generator=generator),
        "projector.0": torch.randn(10, 10, generator=generator),
    }
    base = {"embed": torch.randn(4, 10, generator=generator)}
    restored = decompress(compress(trained, base), base)
    assert torch.equal(restored["embed"][4:], trained["embed"][4:])
    assert torch.equal(restored["projector.0"], trained["projector.0"])


def test_another_base_is_refused(codi, tmp_path):
    store(tmp_path / "trained", str(tmp_path / "base"), tmp_path / "delta")
    with pytest.raises(UserError, match="difference to another model"):
        restore(tmp_path / "delta", str(tmp_path / "trained"), tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_a_folder_that_shares_no_matrix_is_refused(codi, tmp_path):
    other: Path = tmp_path / "other"
    write_tiny_model(other)
    from safetensors.torch import save_file

    save_file({"else": torch.zeros(2, 2)}, other / "model.safetensors")
    with pytest.raises(UserError, match="trained from as --base"):
        store(tmp_path / "trained", str(other), tmp_path / "delta")


def test_loading_a_difference_says_how_to_restore_it(codi, tmp_path, capsys):
    store(tmp_path / "trained", str(tmp_path / "base"), tmp_path / "delta")
    assert main_guard(lambda: load_backbone(tmp_path / "delta")) == 2
    assert "python -m latent_tts.backbones.delta restore" in capsys.readouterr().err
    assert json.loads((tmp_path / "delta" / "latent_tts.json").read_text())["kind"] == "codi"

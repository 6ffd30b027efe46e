"""The shipped evaluations: the values of the published runs, and a debug file that can be laid over each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser, Namespace

from commands.evaluate import CONFIGS
from datamodules.rollout_data import RolloutDataModule
from datamodules.sources.catalogue import HUB_TABLES
from lightning_modules.parallel_tts_module import ParallelTTSModule

pytestmark = pytest.mark.slow

BENCHMARKS = ("gsm8k", "gsm_hard", "multiarith")
WHOLE = sorted(path for path in CONFIGS.rglob("*.yaml") if path.name not in ("default.yaml", "debug.yaml"))


def parsed(*files: Path) -> Namespace:
    """The options after default.yaml and these files, later ones winning; a wrong option or type is an error."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(ParallelTTSModule, "model")
    parser.add_class_arguments(RolloutDataModule, "data")
    layers = [CONFIGS / "default.yaml", *files]
    given = ["--model.backbone=none", *(f"--config={file}" for file in layers)]
    return parser.parse_args(given)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_published_evaluations_have_the_published_values(name):
    options = parsed(CONFIGS / f"{name}.yaml", CONFIGS / "published.yaml")
    assert options.model.backbone == "ModalityDance/latent-tts-coconut"
    assert options.model.reward_model == "ModalityDance/latent-tts-rm"
    assert (options.model.num_rollouts, options.model.seed, options.model.answer_rule) == (64, 42, "strict")
    sampler = options.model.sampler
    assert sampler.class_path == "latent_tts.sampling.MonteCarloDropout"
    assert (sampler.init_args.p, sampler.init_args.sites, sampler.init_args.scope) == (0.1, "residual", "prompt+latent")
    assert options.data.source == name
    assert (options.data.limit, options.data.leave_out_repeats) == (None, False)


def test_the_benchmarks_are_the_published_sets():
    tables: dict[str, Any] = {name: HUB_TABLES[name] for name in BENCHMARKS}
    assert {name: (table.hub_id, table.hub_config, set(table.splits)) for name, table in tables.items()} == {
        "gsm8k": ("openai/gsm8k", "main", {"test"}),
        "gsm_hard": ("reasoning-machines/gsm-hard", None, {"train"}),
        "multiarith": ("ChilleD/MultiArith", None, {"train", "test"}),
    }


@pytest.mark.parametrize("file", WHOLE, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_the_debug_file_can_be_laid_over_every_evaluation(file):
    plain, debug = parsed(file), parsed(file, CONFIGS / "debug.yaml")
    assert (debug.model.num_rollouts, debug.data.limit) == (2, 4)
    assert debug.data.source == plain.data.source
    assert debug.model.sampler == plain.model.sampler

"""Annotation runs: every problem once whatever happens to the run, and what is stored is what was computed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from callbacks.annotation_writer import WriteAnnotations
from commands.annotate import AnnotationCLI
from latent_tts.annotation.prefix_values import annotate
from latent_tts.annotation.reader import AnnotationStore
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.sampling import AdditiveGaussianNoise
from lightning_modules.rollout_annotation_module import RolloutAnnotationModule
from tests.conftest import HUB_COMMIT

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def backbone_folder(tiny_backbone, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_backbone("coconut", "gpt2", num_latents=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def problems_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "problems.jsonl"
    lines = [{"question": f"{'What is ' * (i % 3)}{i} + {i * i}?", "answer": f"#### {i + i * i}"} for i in range(13)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def arguments(backbone_folder, problems_file, tmp_path) -> list[str]:
    options = {
        "model.backbone": backbone_folder, "model.num_rollouts": 2, "model.num_continuations": 3,
        "model.max_answer_tokens": 3, "data.source": problems_file, "data.batch_size": 3, "shard_size": 2,
        "output": tmp_path / "annotations", "trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false",
    }  # fmt: skip
    return [f"--{key}={value}" for key, value in options.items()]


def assert_same(left: AnnotationStore, right: AnnotationStore) -> None:
    assert left.problem_ids == right.problem_ids
    for one, other in zip(left, right, strict=True):
        assert list(one.answers) == list(other.answers)
        assert torch.equal(one.latents, other.latents)  # batches are the same, so results are to the last bit
        torch.testing.assert_close(one.values, other.values, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(one.correct, other.correct)


def test_the_store_holds_what_annotate_computes(arguments, backbone_folder, tmp_path, capsys):
    cli = AnnotationCLI(arguments)
    cli.run()
    assert "13 annotated problems in" in capsys.readouterr().out
    store = AnnotationStore(tmp_path / "annotations")
    assert len(store) == 13
    store.require(backbone_fingerprint=cli.model.backbone.fingerprint(), num_rollouts=2, num_continuations=3)
    engine = RolloutEngine(cli.model.backbone, AdditiveGaussianNoise(0.5), max_answer_tokens=3)
    for problem in store[:4]:
        alone = annotate(engine, [problem.question], [problem.gold], 2, 3, problem_ids=[problem.problem_id])
        torch.testing.assert_close(problem.latents, alone.rollouts.latents[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(problem.values, alone.values[0])
        assert list(problem.answers) == alone.rollouts.answers[0]
    index = json.loads((tmp_path / "annotations" / "index.json").read_text())
    assert index["num_problems"] == 13


def test_annotations_know_the_commit_that_a_hub_set_was_read_at(arguments, fake_hub, tmp_path):
    fake_hub({("owner/name", "test"): [{"question": "1 and 1?", "answer": "2"}]})
    AnnotationCLI([*arguments, "--data.source=owner/name"]).run()
    assert json.loads((tmp_path / "annotations" / "run.json").read_text())["data"] == {"commit": HUB_COMMIT}


@pytest.mark.parametrize("more", [[], ["--model.continue_uniform=false"]], ids=["all", "mixed"])
@pytest.mark.parametrize("batches_before", [0, 1, 3])
def test_a_run_killed_after_any_batch_is_continued_exactly_once(batches_before, more, arguments, tmp_path, monkeypatch):
    arguments = [*arguments, *more]
    whole = tmp_path / "whole"
    AnnotationCLI([*arguments, f"--output={whole}"]).run()

    class Killed(BaseException):
        """Not an exception that anything on the way would tidy up after."""

    calls = iter(range(100))
    original = RolloutAnnotationModule.predict_step

    def dying(self, batch, batch_idx=0):
        if next(calls) == batches_before:
            raise Killed
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(RolloutAnnotationModule, "predict_step", dying)
        patch.setattr(WriteAnnotations, "_close", lambda self: self._writer._unlock())  # what is in memory is lost
        with pytest.raises(Killed):
            AnnotationCLI(arguments).run()
    assert len(list((tmp_path / "annotations").glob("shard-*"))) == 3 * batches_before // 2
    calls = iter(range(100, 200))
    computed: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(
            RolloutAnnotationModule,
            "predict_step",
            lambda self, batch, batch_idx=0: computed.extend(p.problem_id for p in batch) or original(self, batch),
        )
        AnnotationCLI(arguments).run()
    assert len(computed) == 13 - 3 * (3 * batches_before // 2 * 2 // 3)  # whole batches that are stored are left out
    assert_same(AnnotationStore(tmp_path / "annotations"), AnnotationStore(whole))


def test_folders_from_before_the_option_can_be_gone_on_with(arguments):
    """Continuing every problem is the default, and leaves no trace in the settings that older folders lack."""
    assert "continue_uniform" not in AnnotationCLI(arguments).model.annotation_settings("data").to_json()["extra"]


def test_a_finished_run_computes_nothing_and_a_longer_one_only_what_is_missing(arguments, tmp_path, monkeypatch):
    AnnotationCLI([*arguments, "--data.limit=6"]).run()
    shards = {path.name: path.read_bytes() for path in (tmp_path / "annotations").glob("shard-*")}
    with monkeypatch.context() as patch:
        patch.setattr(RolloutAnnotationModule, "predict_step", lambda *_: 1 / 0)
        AnnotationCLI([*arguments, "--data.limit=6"]).run()
    AnnotationCLI(arguments).run()
    store = AnnotationStore(tmp_path / "annotations")
    assert len(store) == len(set(store.problem_ids)) == 13
    assert all((tmp_path / "annotations" / name).read_bytes() == content for name, content in shards.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1].replace("#### 2", "#### 3"), "judged by the gold answer 2, and the data says 3 now"),
        (lambda lines: "", "that the data has no longer"),
    ],
    ids=["corrected", "removed"],
)
def test_a_corrected_data_file_is_refused_and_the_folder_stays_as_it_is(
    change, message, arguments, problems_file, tmp_path
):
    data = tmp_path / "problems.jsonl"
    lines = problems_file.read_text().splitlines(keepends=True)
    data.write_text("".join(lines))
    arguments = [*arguments, f"--data.source={data}"]
    AnnotationCLI(arguments).run()
    before = {path.name: path.read_bytes() for path in (tmp_path / "annotations").iterdir()}
    data.write_text("".join([lines[0], change(lines), *lines[2:]]))
    with pytest.raises(UserError, match=message):
        AnnotationCLI(arguments).run()
    assert {path.name: path.read_bytes() for path in (tmp_path / "annotations").iterdir()} == before
    data.write_text("".join(lines))
    AnnotationCLI(arguments).run()


def test_the_folder_says_what_it_is_and_runs_again_by_its_own_configuration(arguments, tmp_path, capsys):
    """Another part of the data, then all of it, then nothing left: seconds add up, and a finished folder stays as it is."""
    folder = tmp_path / "annotations"
    AnnotationCLI([*arguments, "--data.limit=6"]).run()
    first = json.loads((folder / "run.json").read_text())
    assert first["finished"] and first["num_problems"] == 6
    assert {"command", "versions", "git_commit", "device", "precision", "started", "seconds"} <= first.keys()
    AnnotationCLI(arguments).run()
    assert "13 annotated problems in" in (said := capsys.readouterr().out) and "7 of them are new" in said
    second = json.loads((folder / "run.json").read_text())
    assert (second["num_problems"], second["started"]) == (13, first["started"]) and second["seconds"] > first[
        "seconds"
    ]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    AnnotationCLI([f"--config={folder / 'config.yaml'}"]).run()
    assert "It was finished: nothing was left to do." in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_that_is_killed_leaves_a_folder_that_says_so(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(RolloutAnnotationModule, "predict_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        AnnotationCLI(arguments).run()
    assert json.loads((tmp_path / "annotations" / "run.json").read_text())["finished"] is None


def test_an_interrupted_run_keeps_all_it_has_computed(arguments, tmp_path, monkeypatch):
    calls = iter(range(100))
    original = RolloutAnnotationModule.predict_step

    def interrupted(self, batch, batch_idx=0):
        if next(calls) == 2:
            raise RuntimeError("power is going")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(RolloutAnnotationModule, "predict_step", interrupted)
    with pytest.raises(RuntimeError, match="power is going"):
        AnnotationCLI([*arguments, "--shard_size=64"]).run()
    assert len(AnnotationStore(tmp_path / "annotations")) == 6


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.seed=1", "seed=0, this run asks for seed=1"),
        ("--model.num_continuations=4", "num_continuations=3, this run asks for num_continuations=4"),
        ("--model.sampler.init_args.sigma=0.4", "sigma"),
        ("--model.num_latents=3", "num_latents=2"),
        ("--data.skip_bad_rows=true", "data.skip_bad_rows=False, this run asks for data.skip_bad_rows=True"),
        ("--model.continue_uniform=false", "continue_uniform"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_stays_as_it_is(option, message, arguments, tmp_path):
    AnnotationCLI([*arguments, "--data.limit=3"]).run()
    before = {path.name: path.read_bytes() for path in (tmp_path / "annotations").iterdir()}
    with pytest.raises(UserError, match=message):
        AnnotationCLI([*arguments, option]).run()
    assert {path.name: path.read_bytes() for path in (tmp_path / "annotations").iterdir()} == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.num_rollouts=0", "num_rollouts must be at least 1"),
        ("--model.num_rollouts=1000000001", "num_rollouts is 1000000001"),
        ("--model.num_continuations=-1", "num_continuations is -1"),
        ("--model.max_rows=0", "max_rows is 0"),
        ("--model.last=first", "model.last"),
        ("--model.backbone=nowhere", "no folder 'nowhere'"),
        ("--shard_size=0", "shard_size is 0"),
        ("--model.sampler=Deterministic", "Every rollout and every continuation of Deterministic() is the greedy one"),
        ("--model.sampler.sigma=0", "of AdditiveGaussianNoise(sigma=0.0) is the greedy one"),
        ("--data.source=gsm-symbolic --data.split=dev", "gsm-symbolic has no split 'dev'"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(option, message, arguments):
    with pytest.raises(UserError, match=re.escape(message)):
        AnnotationCLI([*arguments, *option.split()]).run()


def test_the_published_annotation_is_the_published_one(backbone_folder, tmp_path):
    """METHOD: MC-dropout p = 0.2, N = 8, M = 64, dropout on for the remaining thoughts and the answers of continuations."""
    path = ROOT / "configs" / "annotate" / "published.yaml"
    cli = AnnotationCLI([f"--config={path}", f"--model.backbone={backbone_folder}", f"--output={tmp_path / 'new'}"])
    settings = cli.model.annotation_settings("data")
    assert settings.sampler == {
        "name": "MonteCarloDropout", "p": 0.2, "sites": "residual", "scope": "prompt+latent+answer"
    }  # fmt: skip
    assert (settings.num_rollouts, settings.num_continuations, settings.extra.last) == (8, 64, "estimate")
    assert settings.extra.continue_uniform
    data = json.loads(cli.data_description())
    assert (data["source"], data["split"]) == ("gsm8k", "train")
    training = yaml.safe_load((ROOT / "configs" / "train" / "latent-rm-published.yaml").read_text())
    assert training["data"]["init_args"]["folder"] == yaml.safe_load(path.read_text())["output"]
    validation = yaml.safe_load(path.with_stem("published-validation").read_text())
    assert training["data"]["init_args"]["val_folder"] == validation["output"]
    assert validation["model"]["num_rollouts"] == 64


def test_a_model_without_latent_thoughts_has_none_to_annotate(tiny_backbone):
    with pytest.raises(UserError, match="cot backbone writes its reasoning and has no latent thoughts to annotate"):
        RolloutAnnotationModule(tiny_backbone("cot", num_latents=0), AdditiveGaussianNoise(0.5))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "annotate").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_accepted_with_the_backbone_it_names(
    path, tmp_path, backbone_folder, monkeypatch
):
    """Written as a recipe's comments say: a file whose name continues another's is given after that one."""
    monkeypatch.chdir(ROOT)  # recipes name the shipped checkpoints relative to it
    bases = {"tiny-validation": "tiny", "tiny-values": "tiny", "published-validation": "published"}
    files = [*([bases[path.stem]] if path.stem in bases else []), path.stem]
    arguments = [f"--config={path.with_stem(stem)}" for stem in files]
    if path.stem == "default" or "published" in files:  # it names no backbone, or one of the hub
        arguments.append(f"--model.backbone={backbone_folder}")
    cli = AnnotationCLI([*arguments, f"--output={tmp_path}"])
    assert cli.model.num_rollouts >= 2  # a contrastive loss compares rollouts
    assert not list(tmp_path.iterdir())

"""`evaluate.py` as its user sees it: options, files, tables, and one sentence for bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from commands.evaluate import CONFIGS, EvaluationCLI, base_configs
from commands.guard import main_guard
from commands.report import main as report
from latent_tts.aggregation import AGGREGATIONS
from latent_tts.search import SEARCHES
from tests.conftest import HUB_COMMIT

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


def evaluate(*args: str) -> int:
    return main_guard(lambda: EvaluationCLI(args).run())


def run_script(*args: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "evaluate.py", *args], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def small(tiny_checkpoint, problem_file) -> list[str]:
    """Options that make any configuration a run of a second."""
    return [
        f"--model.backbone={tiny_checkpoint}",
        f"--data={{source: {problem_file}, question_column: null, answer_column: null, split: null, hub_config: null}}",
        "--data.limit=4",
        "--model.num_rollouts=2",
        "--model.max_answer_tokens=4",
        "--model.num_latents=3",
        "--model.kind=coconut",
        "--model.reward_model=null",
        "--model.search=null",
        "--model.aggregations=null",
        "--trainer.accelerator=cpu",
    ]


@pytest.fixture(scope="module")
def native_checkpoint(tiny_backbone, tmp_path_factory) -> Path:
    """The folder of a tiny random CoLaR that predicts the spread of its thoughts."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-native"
    tiny_backbone("colar", "llama", latent_log_std=True).save_pretrained(folder)
    return folder


DRAWN = {"accuracy", "compute", "diversity", "success", "agreement", "invalid"}
"""Figures of a run without a reward model, some of whose answers do not parse."""


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_runs_at_debug_size(name, small, native_checkpoint, tmp_path):
    native = "NativeGaussian" in (CONFIGS / name).read_text()
    backbone = [f"--model.backbone={native_checkpoint}", "--model.kind=colar"] if native else []
    assert evaluate(f"--config={CONFIGS / name}", *small, *backbone, f"--output={tmp_path}") == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["num_problems"] == 4


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in ("default.yaml",)])
def test_every_shipped_config_says_what_it_is_for_and_only_what_differs(name):
    text = (CONFIGS / name).read_text()
    assert text.startswith("# ")
    default, own = yaml.safe_load((CONFIGS / "default.yaml").read_text()), yaml.safe_load(text)
    for group, options in own.items():
        for option, value in options.items():
            assert default.get(group, {}).get(option) != value, f"{group}.{option} is the default already"


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "made" / "on" / "the" / "way"
    assert evaluate(*small, f"--output={output}") == 0
    return output


def test_an_evaluation_leaves_the_documented_files(finished):
    files = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("tensorboard/") and "events.out.tfevents." in name}
    assert len(events) == 2 and sum(name.endswith(".results") for name in events) == 1  # while it ran, and at its end
    assert files - events == {
        ".lock", "config.yaml", "metrics.json", "report.html", "report.md", "predictions/rank-00000.jsonl", "run.json",
        *(f"figures/{name}.{kind}" for name in DRAWN for kind in ("png", "svg")),
    }  # fmt: skip


def test_the_commit_that_a_hub_set_was_read_at_is_kept_and_stays_in_a_report_made_anew(small, fake_hub, tmp_path):
    """It is no setting: the same command goes on at a newer commit, which is kept then."""
    sets = {("owner/name", "test"): [{"question": f"{i} and 1?", "answer": str(i)} for i in range(2)]}
    options = [*small, "--data={source: owner/name}", f"--output={tmp_path}"]
    for commit, more in ((HUB_COMMIT, ["--data.num_workers=1"]), ("0" * 40, [])):
        fake_hub(sets, commit)
        assert evaluate(*options, *more) == 0
        run, metrics = (json.loads((tmp_path / name).read_text()) for name in ("run.json", "metrics.json"))
        assert run["evaluated"]["data"] == {"commit": commit}
        assert metrics["evaluated"]["data"]["commit"] == commit
    report([str(tmp_path)])
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


def test_predictions_are_a_data_set_as_they_are(finished, tmp_path):
    import datasets

    rows = datasets.load_dataset(str(finished / "predictions"), split="train", cache_dir=str(tmp_path))
    lines = [json.loads(line) for line in (finished / "predictions" / "rank-00000.jsonl").read_text().splitlines()]
    assert [row["problem_id"] for row in rows] == [line["problem_id"] for line in lines]
    assert [row["rollouts"][1]["text"] for row in rows] == [line["rollouts"][1]["text"] for line in lines]


def test_metrics_json_has_the_documented_fields(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics["coverage"]) == {"1", "2"} and set(metrics["accuracy"]["majority_voting"]) == {"1", "2"}
    assert {"greedy", "single"} <= set(metrics["accuracy"])
    low, high = metrics["confidence_interval"]["coverage@2"]
    assert low <= metrics["coverage"]["2"] <= high
    assert metrics["diversity"]["mean"] > 0 and len(metrics["diversity"]["per_step"]) == 3
    assert metrics["throughput"]["rollouts_per_second"] > 0
    assert (metrics["num_problems"], metrics["num_rollouts"]) == (4, 2) and "invalid_answer_rate" in metrics


def test_run_json_and_metrics_json_say_what_was_evaluated_and_how(finished, tiny_checkpoint):
    run, metrics = (json.loads((finished / name).read_text()) for name in ("run.json", "metrics.json"))
    assert metrics["evaluated"]["backbone"] == run["evaluated"]["backbone"]
    assert metrics["evaluated"]["backbone"]["name"] == str(tiny_checkpoint)
    assert metrics["evaluated"]["backbone"]["kind"] == "coconut" and metrics["evaluated"]["reward_model"] is None
    assert metrics["evaluated"]["sampler"] == {"name": "AdditiveGaussianNoise", "sigma": 0.5}
    assert metrics["evaluated"]["data"]["limit"] == 4 and len(metrics["evaluated"]["data"]["fingerprint"]) == 16
    assert metrics["nonfinite_rollouts"] == 0
    assert run["versions"]["torch"] and run["device"].startswith("cpu") and run["precision"] == "32-true"
    assert run["started"] <= run["finished"] and run["seconds"] > 0 and run["command"]
    assert run["settings"]["model.seed"] == 0


def test_the_report_of_a_run_follows_from_its_records_alone(finished):
    before = (finished / "metrics.json").read_bytes(), (finished / "report.md").read_bytes()
    (finished / "report.md").unlink()
    report([str(finished)])
    assert ((finished / "metrics.json").read_bytes(), (finished / "report.md").read_bytes()) == before


def test_a_line_of_the_predictions_has_the_documented_fields(finished):
    lines = (finished / "predictions" / "rank-00000.jsonl").read_text().splitlines()
    assert len(lines) == 4
    record = json.loads(lines[0])
    assert {
        "problem_id",
        "question",
        "gold",
        "rollouts",
        "chosen",
        "greedy",
        "diversity",
        "token_steps",
        "search",
    } == set(record)
    assert [set(rollout) for rollout in record["rollouts"]] == [
        {"text", "answer", "correct", "num_latents", "step_scores"}
    ] * 2


def test_tensorboard_has_curves_with_k_as_the_step_and_the_figures(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    metrics = json.loads((finished / "metrics.json").read_text())
    for tag, curve in (
        ("over_k_set_smoothing_to_0/coverage", metrics["coverage"]),
        ("over_k_set_smoothing_to_0/majority_voting", metrics["accuracy"]["majority_voting"]),
    ):
        points = {str(event.step): event.value for event in events.Scalars(tag)}
        assert points == pytest.approx(curve, abs=1e-6)
    (final,) = events.Scalars("final/majority_voting_2")  # one point: smoothing cannot move it
    assert final.value == pytest.approx(metrics["accuracy"]["majority_voting"]["2"], abs=1e-6)
    assert {"_hparams_/session_start_info", "custom_scalars__config__"} <= set(events.summary_metadata)
    assert set(events.Tags()["images"]) == {f"figures/{name}" for name in DRAWN}


def test_curves_over_the_problems_done_are_there_while_a_run_goes_on(small, tmp_path, monkeypatch):
    """Read in the middle of the run; the curves end at the metrics of the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from callbacks.live_metrics import LiveMetrics

    def read() -> EventAccumulator:
        return EventAccumulator(str(tmp_path / "tensorboard")).Reload()

    log = LiveMetrics._log
    seen: list[list[int]] = []

    def log_and_read(self, trainer, module):
        log(self, trainer, module)
        seen.append([event.step for event in read().Scalars("live/coverage_2")])

    monkeypatch.setattr(LiveMetrics, "_log", log_and_read)
    monkeypatch.setattr("commands.evaluate.LiveMetrics", lambda: LiveMetrics(every=0))
    assert evaluate(*small, "--data.batch_size=1", f"--output={tmp_path}") == 0
    assert seen == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4]]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    low, high = metrics["confidence_interval"]["greedy"]
    expected = {"live/majority_voting_2": metrics["accuracy"]["majority_voting"]["2"], "live_interval/greedy_low": low}
    expected |= {"live_interval/greedy_high": high, "live/invalid_answer_rate": metrics["invalid_answer_rate"]}
    assert "custom_scalars__config__" in read().summary_metadata
    for name, value in expected.items():
        assert read().Scalars(name)[-1].value == pytest.approx(value, abs=1e-5)
    assert read().Scalars("live_speed/rollouts_per_second")[-1].value > 0


def test_another_logger_gets_the_curves_and_the_final_figures(small, tmp_path):
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'logs'}"]
    assert evaluate(*small, *logger, f"--output={tmp_path / 'run'}") == 0
    (file,) = (tmp_path / "logs").rglob("metrics.csv")
    tags = set(file.read_text().splitlines()[0].split(","))
    assert {"step", "live/coverage_2", "live_interval/greedy_low", "final/coverage_2"} <= tags
    assert "num_rollouts: 2" in file.with_name("hparams.yaml").read_text()
    assert all(path.name.endswith(".results") for path in (tmp_path / "run" / "tensorboard").iterdir())


def test_the_stored_configuration_runs_again(finished, tmp_path):
    assert evaluate(f"--config={finished / 'config.yaml'}", f"--output={tmp_path}") == 0
    name = "predictions/rank-00000.jsonl"
    assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_the_console_ends_with_the_table_the_facts_and_the_place_of_the_files(small, tmp_path, capsys):
    assert evaluate(*small, f"--output={tmp_path}", "--trainer.enable_progress_bar=true") == 0
    out, err = capsys.readouterr()
    for name in ("greedy", "single rollout", "coverage", "majority voting"):
        assert re.search(rf"^ +{name} +\d", out, re.MULTILINE), name
    assert "rollouts per second" in out and "invalid answers: " in out and "4/4" in out
    assert out.rstrip().splitlines()[-1].startswith(f"files: {tmp_path}/")
    assert err == "" and "GPU available" not in out and "Tip" not in out


def test_the_same_settings_choose_the_same_folder_and_other_settings_another(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [EvaluationCLI([*small, *more]).output for more in ([], ["--data.batch_size=2"], ["--model.seed=1"])]
    assert folders[0] == folders[1] != folders[2]
    assert folders[0].as_posix().startswith("results/tiny-random-problems-") and not any(tmp_path.iterdir())


def test_flags_win_over_files_and_later_files_over_earlier_ones(small, tmp_path):
    (tmp_path / "one.yaml").write_text("model: {num_rollouts: 5, seed: 3}\n")
    (tmp_path / "two.yaml").write_text(
        "model: {seed: 4, sampler: {class_path: MonteCarloDropout, init_args: {p: 0.25}}}\n"
    )
    options = [option for option in small if "num_rollouts" not in option]
    files = [f"--config={tmp_path / name}" for name in ("one.yaml", "two.yaml")]
    files = [*files, *options]
    made = EvaluationCLI([*files, f"--output={tmp_path}"]).model.evaluator
    assert (made.num_rollouts, made.seed) == (5, 4) and made.engine.sampler.p == 0.25
    made = EvaluationCLI([*files, "--model.seed=9", "--model.sampler.p=0.5", f"--output={tmp_path}"]).model.evaluator
    assert made.seed == 9 and made.engine.sampler.p == 0.5
    made = EvaluationCLI(
        [*files, "--model.sampler=AdditiveGaussianNoise", "--model.sampler.sigma=0.75"]
    ).model.evaluator
    assert made.engine.sampler.sigma == 0.75


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("demo/")])
def test_every_demo_runs_with_the_model_it_is_named_after(name, tmp_path):
    config = yaml.safe_load((CONFIGS / name).read_text())
    assert config["model"]["backbone"] == f"checkpoints/{Path(name).stem}"
    small = ["--data.size=4", "--model.num_rollouts=2", "--trainer.accelerator=cpu"]
    assert evaluate(f"--config={CONFIGS / name}", *small, f"--output={tmp_path}") == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["num_problems"], metrics["invalid_answer_rate"]) == (4, 0.0)


def test_the_demo_is_the_default_unless_a_backbone_is_chosen(tmp_path):
    def names(*args: str) -> list[str]:
        return [path.name for path in base_configs(args)]

    (tmp_path / "with.yaml").write_text("model: {backbone: x}\n")
    (tmp_path / "without.yaml").write_text("model: {seed: 1}\n")
    for args in (
        [],
        ["--model.seed", "1"],
        [f"--config={tmp_path / 'without.yaml'}"],
        ["--config", "absent.yaml"],
        ["--config"],
    ):
        assert names(*args) == ["default.yaml", "tiny-colar.yaml"]
    for args in (
        ["--model.backbone", "x"],
        ["--model.backbone=x"],
        [f"--config={tmp_path / 'with.yaml'}"],
        ["-c", f"{tmp_path / 'with.yaml'}"],
    ):
        assert names(*args) == ["default.yaml"]


def test_every_option_in_the_help_has_a_sentence(capsys):
    with pytest.raises(SystemExit) as exit_info:
        EvaluationCLI(["--help"])
    text = capsys.readouterr().out
    assert exit_info.value.code == 0
    entries = re.findall(r"^  (--(?:model|data|trainer|output)\S*)(.*(?:\n {20,}.*)*)", text, re.MULTILINE)
    assert len(entries) > 25
    assert all(name in text for name in [*AGGREGATIONS, *SEARCHES]) and "SEARCHES" not in text
    for option, rest in entries:
        words = re.sub(r"\((?:required, )?type:.*", "", " ".join(rest.split()))
        assert re.search(r"[a-z]{2,} [a-z]", words), f"{option} has no sentence: {words}"


def test_drawn_answers_are_an_option_of_the_command(small, tmp_path):
    options = ["--model.sampler=Deterministic", "--model.answer_sampler.top_p=0.9", f"--output={tmp_path}"]
    made = EvaluationCLI([*small, *options]).model.evaluator
    assert (made.engine.answer_sampler.temperature, made.engine.answer_sampler.top_p) == (1.0, 0.9)


BAD_INPUT = {
    "no rollout": (["--model.num_rollouts=0"], "num_rollouts must be at least 1, got 0"),
    "a number that is none": (["--model.num_rollouts=many"], "--model.num_rollouts must be int, got many"),
    "negative sigma": (["--model.sampler.sigma=-1"], "sigma must be a finite number and not negative, got -1.0"),
    "p of 1": (["--model.sampler=MonteCarloDropout", "--model.sampler.p=1.0"], "p must lie between 0 and 1"),
    "unknown sampler": (["--model.sampler=Thermal"], "there is no class 'Thermal'"),
    "sampler of another kind": (["--model.sampler=NativeGaussian"], "this coconut checkpoint has none"),
    "option of another sampler": (["--model.sampler.p=0.1"], "There is no option --model.sampler.p; there is: sigma"),
    "unknown aggregation": (["--model.aggregations=[median]"], "knows no 'median'"),
    "unknown option": (["--model.colour=red"], "There is no option --model.colour;"),
    "unknown option in a file": (["--config={tmp}/unknown.yaml"], "There is no option --model.colour;"),
    "broken file": (["--config={tmp}/broken.yaml"], "is not valid YAML"),
    "no such config": (["--config={tmp}/absent.yaml"], "absent.yaml"),
    "no such data": (["--data.source={tmp}/absent.jsonl"], "absent.jsonl"),
    "no data": (["--data.source={tmp}/empty.jsonl"], "empty data set"),
    "bad answer": (["--data.source={tmp}/bad.jsonl"], "line 2"),
    "unknown hub id offline": (["--model.backbone=nobody/nothing"], "'nobody/nothing'"),
    "checkpoint of another kind": (["--model.kind=codi"], "coconut checkpoint, not codi"),
    "reward model that is none": (["--model.reward_model={checkpoint}"], "is it a backbone and not a reward model"),
    "prompt without room": (["--model.max_answer_tokens=250"], "leaves no room"),
    "output is a file": (["--output={tmp}/empty.jsonl"], "empty.jsonl is a file; name another folder with --output"),
    "a batch size that is none": (
        ["--data.batch_size=many"],
        "--data.batch_size must be int, got many",
    ),
    "a batch size by itself": (["--data.batch_size=auto"], "--data.batch_size must be int, got auto"),
    "no problem in a batch": (["--data.batch_size=0"], "batch_size must be at least 1, got 0"),
    "every weight in half precision": (["--trainer.precision=bf16-true"], "give --model.dtype bfloat16"),
    "no such device": (["--trainer.accelerator=tpu"], "--trainer options"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    case, small, tiny_checkpoint, tmp_path, capsys, forbid_network
):
    (tmp_path / "unknown.yaml").write_text("model: {colour: red}\n")
    (tmp_path / "broken.yaml").write_text("model: {colour: [}\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"question": "1?", "answer": "1"}\n{"question": "2?", "answer": "two"}\n')
    before = sorted(tmp_path.rglob("*"))
    bad, message = BAD_INPUT[case]
    bad = [option.format(tmp=tmp_path, checkpoint=tiny_checkpoint) for option in bad]
    output = [] if "output" in case else [f"--output={tmp_path / 'results'}"]
    assert evaluate(*small, *output, *bad) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert sorted(tmp_path.rglob("*")) == before


def test_the_script_ends_with_code_2_and_one_line():
    done = run_script("--model.backbone=nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "error: There is no folder 'nowhere': check the path, or give a hub id of the form owner/name.\n"
    )


def assert_live_figures_are_of_both(run, metrics):
    """The last point of every curve, which rank 0 logs, has counted the problems of all ranks."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    last = {
        tag.partition("/")[2]: events.Scalars(tag)[-1] for tag in events.Tags()["scalars"] if tag.startswith("live/")
    }
    assert {point.step for point in last.values()} == {metrics["num_problems"]}
    for name, expected in (
        ("greedy", metrics["accuracy"]["greedy"]),
        ("single", metrics["accuracy"]["single"]),
        ("coverage_2", metrics["coverage"]["2"]),
        ("invalid_answer_rate", metrics["invalid_answer_rate"]),
    ):
        assert last[name].value == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_two_processes_give_the_records_and_metrics_of_one(small, tmp_path):
    options = [*small, "--data.limit=11", "--data.batch_size=2"]
    assert evaluate(*options, f"--output={tmp_path / 'one'}") == 0
    done = run_script(*options, f"--output={tmp_path / 'two'}", "--trainer.devices=2", "--trainer.strategy=ddp")
    assert done.returncode == 0, done.stderr
    records, metrics = {}, {}
    for name in ("one", "two"):
        files = sorted((tmp_path / name / "predictions").glob("*.jsonl"))
        assert len(files) == (2 if name == "two" else 1)
        records[name] = sorted(line for file in files for line in file.read_text().splitlines())
        metrics[name] = json.loads((tmp_path / name / "metrics.json").read_text())
        del metrics[name]["throughput"]
    assert len(records["one"]) == 11 and records["one"] == records["two"]
    assert metrics["one"] == metrics["two"]
    assert_live_figures_are_of_both(tmp_path / "two", metrics["two"])
    assert main_guard(lambda: report([str(tmp_path / "two"), "--out", str(tmp_path / "again")])) == 0
    for name, start in (
        ("metrics.json", "{"),
        ("report.md", "#"),
        ("report.html", 'id="page-0"'),
    ):  # figures are no part of it
        one, two = ((tmp_path / folder / name).read_text().partition(start)[2] for folder in ("again", "two"))
        assert len(two) > 100 and one == two, name
    assert evaluate(*options, f"--output={tmp_path / 'two'}") == 0  # one process goes on with the files of two
    again = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert again.pop("throughput") and again == metrics["one"]


@pytest.mark.parametrize(
    ("kind", "file"),
    [("coconut", "gsm8k/test.jsonl"), ("codi", "gsm_hard/test.json"), ("colar", "multiarith/test.json")],
)
def test_reference_checkpoints_are_evaluated_on_the_files_of_the_benchmarks(kind, file, reference, excerpts, tmp_path):
    options = [f"--model.backbone={reference / kind}", f"--data.source={excerpts / file}", "--data.limit=3"]
    options += ["--model.num_rollouts=2", "--model.max_answer_tokens=4"]
    assert evaluate(*options, "--trainer.accelerator=cpu", f"--output={tmp_path}") == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["num_problems"] == 3

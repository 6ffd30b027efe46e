"""Bad input to any command ends as one sentence that names it, with exit code 2, before a model loads, and writes nothing."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import (
    bands,
    export,
    extract_adapters,
    fresh_model,
    gguf,
    inspect,
    report,
    resampling_report,
    study,
    study_page,
    sweep,
    trajectories,
    writer,
)
from commands import list as list_runs
from commands.__main__ import commands
from commands.annotate import AnnotationCLI
from commands.checks import NO_EFFECT, NOT_USED
from commands.evaluate import EvaluationCLI
from commands.guard import main_guard
from commands.tools import run_tool
from commands.train import CONFIGS, TrainingCLI

pytestmark = pytest.mark.slow

FIT = ["fit", f"--config={CONFIGS / 'tiny-coconut.yaml'}", "--model.backbone=/nowhere/at/all"]
EVALUATE = ["--model.backbone=/nowhere/at/all"]
STUDY = CONFIGS.parent / "study" / "controls-tiny-codi.yaml"
SHIPPED = [f"--model.backbone={CONFIGS.parents[1] / 'checkpoints' / 'tiny-coconut'}"]

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": lambda args: main_guard(lambda: TrainingCLI(args)),
    "evaluate": lambda args: main_guard(lambda: EvaluationCLI(args).run()),
    "annotate": lambda args: main_guard(lambda: AnnotationCLI(args).run()),
    "fresh_model": lambda args: run_tool(fresh_model.main, args),
    "gguf": lambda args: run_tool(gguf.main, args),
    "resampling_report": lambda args: run_tool(resampling_report.main, args),
    "export": lambda args: main_guard(lambda: export.main(args)),
    "report": lambda args: main_guard(lambda: report.main(args)),
    "inspect": lambda args: main_guard(lambda: inspect.main(args)),
    "list": lambda args: main_guard(lambda: list_runs.main(args)),
    "sweep": lambda args: main_guard(lambda: sweep.main(args)),
    "trajectories": lambda args: main_guard(lambda: trajectories.main(args)),
    "study": lambda args: run_tool(study.main, args),
    "bands": lambda args: run_tool(bands.main, args),
    "study_page": lambda args: run_tool(study_page.main, args),
    "writer": lambda args: run_tool(writer.main, args),
    "extract_adapters": lambda args: main_guard(lambda: extract_adapters.main(args)),
}

FILES = {
    "typo.yaml": "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.ModelChekpoint}]}",
    "argument.yaml": "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
    "init_args: {save_best_only: true}}]}",
    "value.yaml": "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
    "init_args: {save_top_k: -7}}]}",
    "second.yaml": "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.LearningRateMonitor}, "
    "{class_path: lightning.pytorch.callbacks.Timer, init_args: {durations: 3}}]}",
    "monitor.yaml": "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.EarlyStopping, "
    "init_args: {monitor: val_loss}}]}",
    "accumulate.yaml": "trainer: {accumulate_grad_batches: 4}",
    "unknown.yaml": "model: {colour: red}",
    "group.yaml": "modle: {seed: 1}",
    "list.yaml": "- model",
    "torn.yaml": "model: {seed: 1",
    "reduction.yaml": "model: {reward_model: x, aggregations: [{name: best_of_n, reduction: median}]}",
    "comment.yaml": "# nothing",
    "binary.yaml": "\x00\x01",
    "masked.csv": "Question,Numbers,Equation,Answer\nnumber0 and number1 ?,1 2,+ number0 number1,3\n",
    "rows.jsonl": '{"question": "5 + 6?", "answer": "11"}\n',
    "cut.gguf": "GGUF",
    "text.ckpt": "some text\nmore\n",
    "empty.ckpt": "",
    "named.yaml": "model: {backbone: text.ckpt}",
}

LATENT_RM = ["fit", f"--config={CONFIGS / 'latent-rm-tiny.yaml'}", "--model.backbone=/nowhere/at/all"]

# command, arguments, what the sentence must hold
CASES = [
    # names of options
    ("evaluate", ["--model.samplr=x"], "no option --model.samplr (did you mean sampler?)"),
    ("evaluate", ["--model.colour=red"], "no option --model.colour; there are: backbone, sampler"),
    ("evaluate", ["--modle.seed=1"], "no option --modle.seed; there are:"),
    ("evaluate", ["--outptu=x"], "no option --outptu (did you mean output?)"),
    ("evaluate", ["--data.sourc=x"], "did you mean source?"),
    ("evaluate", ["--model.sampler=AdditiveGaussianNoise", "--model.sampler.sigm=1"], "did you mean sigma?"),
    ("evaluate", ["--seed_everything=1"], "--model.seed and --data.seed"),
    ("evaluate", ["--config=unknown.yaml"], "no option --model.colour"),
    ("evaluate", ["--config=group.yaml"], "no option --modle"),
    ("annotate", ["--model.num_continuation=1"], "did you mean num_continuations?"),
    ("annotate", ["--shardsize=1"], "did you mean shard_size?"),
    ("train", [*FIT, "--model.optimization.lrr=3"], "no option --model.optimization.lrr (did you mean lr?)"),
    ("train", [*FIT, "--model.curriculum.cot_epoch=3"], "did you mean cot_epochs?"),
    ("train", [*FIT, "--model.lrr=3"], "no option --model.lrr"),
    ("train", [*FIT, "--data.train_sise=3"], "did you mean train_size?"),
    ("train", [*FIT, "--trainer.max_epoch=3"], "did you mean max_epochs?"),
    ("train", [*FIT, "--seed_everything=3"], "every part that draws has its own seed"),
    ("fresh_model", ["--out=x", "--model.hidden_siz=3"], "did you mean hidden_size?"),
    ("gguf", ["--out=x", "--fil=y"], "did you mean file?"),
    ("resampling_report", ["--source=x", "--shows=3"], "did you mean show?"),
    ("export", ["x", "--out=y", "--weight=best"], "Unrecognized arguments: --weight=best"),
    # commands, and what is missing
    ("train", [], "A command is missing: give one of fit, validate first."),
    ("train", ["fti"], "no command 'fti'; there are: fit, validate"),
    ("train", ["fit"], "--model has no value; there are: ChainOfThoughtModule, CoconutModule"),
    ("train", ["fit", "--model=CoconutModule"], "--data has no value"),
    ("train", ["fit", "--model=CoconutModule", "--data=ReasoningStepsDataModule"], "--model.backbone has no value"),
    ("evaluate", ["--model.num_rollouts"], "--model.num_rollouts needs a value"),
    ("export", [], "required: run"),
    ("report", [], "required: RUN"),
    ("inspect", [], "required: run"),
    ("trajectories", ["missing"], "required: --problem"),
    ("sweep", [], "required: --vary"),
    ("study", [], "study"),
    ("bands", ["--study=nothing"], "no figures of 'nothing'"),
    ("study_page", ["--page=missing.md"], "missing.md"),
    ("writer", ["--backbone=/nowhere", "--out=x"], "/nowhere"),
    ("study", ["--studi=x"], "did you mean study?"),
    ("study", ["--study=missing.yaml"], "missing.yaml"),
    ("study", ["--study=list.yaml"], "list.yaml"),
    ("list", ["missing"], "There is no folder missing"),
    ("list", ["--sortt=x"], "Unrecognized arguments: --sortt=x"),
    ("inspect", ["missing"], "missing holds no run.json"),
    ("sweep", ["--vary=seed"], "seed"),
    ("sweep", ["--vary=model.samplr=1,2"], "samplr"),
    ("report", ["x", "--aggregation=hybrid"], "Unrecognized arguments: --aggregation=hybrid"),
    ("report", ["x", "--answer_rule=lax"], "invalid choice: 'lax'"),
    ("report", ["x", "--aggregations=hybrid"], "--aggregations must be a list"),
    ("report", ["missing"], "missing"),
    ("extract_adapters", ["x", "--out=y"], "required: --base"),
    ("fresh_model", [], "out"),
    ("resampling_report", [], "source"),
    # values
    ("evaluate", ["--model.num_rollouts=many"], "--model.num_rollouts must be int, got many"),
    ("evaluate", ["--model.dtype=float17"], "must be one of 'float32', 'bfloat16', got float17"),
    ("evaluate", ["--model.sampler=Thermal"], "no class 'Thermal'; there are: AdditiveGaussianNoise"),
    ("evaluate", ["--model.sampler=AdditiveGaussianNoise", "--model.sampler.sigma=big"], "must be float, got big"),
    ("evaluate", [*SHIPPED, "--data.batch_size=0"], "batch_size"),
    ("evaluate", [*SHIPPED, "--data.limit=-1"], "limit"),
    ("evaluate", [*SHIPPED, "--model.num_rollouts=0"], "num_rollouts must be at least 1"),
    ("evaluate", [*SHIPPED, "--model.num_rollouts=1000000001"], "num_rollouts is 1000000001, and a problem has at most"),
    ("annotate", ["--model.num_rollouts=few"], "--model.num_rollouts must be int"),
    ("train", [*FIT, "--model=CoconutModul"], "no class 'CoconutModul' (did you mean CoconutModule?)"),
    ("train", [*FIT, "--model=lightning_modules.nowhere.X"], "no module 'lightning_modules.nowhere'"),
    ("train", [*FIT, "--model.optimization.lr=fast"], "--model.optimization.lr must be float, got fast"),
    ("train", [*FIT, "--data.train_size=many"], "--data.train_size must be int or null, got many"),
    ("train", [*FIT, "--trainer.max_epochs=x"], "--trainer.max_epochs must be int or null, got x"),
    ("fresh_model", ["--out=x", "--num_examples=many"], "--num_examples must be int"),
    ("fresh_model", ["--out=x", "--model.architecture=lama"], "architecture"),
    ("gguf", ["--out=x", "--dtype=float8"], "must be one of 'float32', 'bfloat16', got float8"),
    ("extract_adapters", ["x", "--base=y", "--out=z", "--r=many"], "invalid int value: 'many'"),
    ("export", ["x", "--out=y", "--dtype=float8"], "invalid choice: 'float8'"),
    # files
    ("evaluate", ["--config=missing.yaml"], "missing.yaml cannot be read: No such file"),
    ("evaluate", ["--config=list.yaml"], "list.yaml must hold options by name"),
    ("evaluate", [*EVALUATE, "--output="], "Option --output has an empty value"),
    ("evaluate", ["--model.backbone", ""], "Option --model.backbone has an empty value"),
    ("train", [*FIT, "--data.train= "], "Option --data.train has an empty value"),
    ("report", ["x", "--out", ""], "Option --out has an empty value"),
    ("report", ["x", "--out=text.ckpt"], "text.ckpt is a file, where a folder is meant"),
    ("export", ["x", "--out=text.ckpt"], "text.ckpt is a file, where a folder is meant"),
    # a file on the way to the folder of the results
    ("evaluate", [*EVALUATE, "--output=text.ckpt/x/y"], "text.ckpt is a file; name another folder with --output"),
    ("annotate", [*EVALUATE, "--output=text.ckpt/x/y"], "text.ckpt is a file; name another folder with --output"),
    ("train", [*FIT, "--output=text.ckpt/x/y"], "text.ckpt is a file; name another folder with --output"),
    ("sweep", ["--vary=model.seed=0,1", *EVALUATE, "--output=text.ckpt/x"], "text.ckpt is a file; name another folder"),
    ("report", ["x", "--out=text.ckpt/x/y"], "text.ckpt is a file"),
    ("export", ["x", "--out=text.ckpt/x/y"], "text.ckpt is a file"),
    ("extract_adapters", ["x", "--base=y", "--out=text.ckpt/x"], "text.ckpt is a file"),
    ("trajectories", ["x", "--problem=1", "--out=text.ckpt/x.png"], "text.ckpt is a file; name another folder with --out"),
    ("study", [f"--study={STUDY}", "--results=text.ckpt/x"], "text.ckpt is a file; name another folder with --results"),
    ("study", [f"--study={STUDY}", "--results=x", "--kept=text.ckpt"], "is a file; name another folder with --kept"),
    ("fresh_model", ["--out=text.ckpt"], "text.ckpt is a file; name another folder with --out"),
    ("gguf", ["--out=text.ckpt", "--file=cut.gguf"], "text.ckpt is a file; name another folder with --out"),
    ("writer", ["--backbone=/nowhere", "--out=text.ckpt"], "text.ckpt is a file; name another folder with --out"),
    ("fresh_model", ["--out="], "Option --out has an empty value"),
    ("evaluate", ["--config=empty.ckpt"], "--config empty.ckpt holds no option"),
    ("train", [*FIT, "--config=comment.yaml"], "--config comment.yaml holds no option"),
    ("evaluate", ["--config=torn.yaml"], "torn.yaml is not valid YAML"),
    ("evaluate", ["--config=binary.yaml"], "binary.yaml"),
    ("evaluate", [*EVALUATE], "no folder '/nowhere/at/all'"),
    ("annotate", [*EVALUATE], "no folder '/nowhere/at/all'"),
    ("train", [*FIT], "no folder '/nowhere/at/all'"),
    ("train", [*FIT, "--config=missing.yaml"], "missing.yaml cannot be read"),
    ("gguf", ["--out=x", "--file=missing.gguf"], "no file"),
    ("gguf", ["--out=x", "--file=cut.gguf"], "cannot be read as GGUF"),
    ("export", ["missing", "--out=y"], "missing"),
    ("resampling_report", ["--source=missing.jsonl"], "missing.jsonl"),
    # a file where a checkpoint's folder is meant
    ("evaluate", ["--model.backbone=text.ckpt"], "text.ckpt is a file: name the folder that holds config.json"),
    ("evaluate", ["--model.backbone=empty.ckpt"], "empty.ckpt is a file"),
    ("evaluate", ["--config=named.yaml"], "text.ckpt is a file"),
    ("evaluate", ["--model.backbone=."], ". holds no config.json"),
    ("evaluate", [*SHIPPED, "--model.reward_model=text.ckpt"], "text.ckpt is a file"),
    ("evaluate", [*SHIPPED, "--model.reward_model=empty.ckpt"], "empty.ckpt is a file"),
    ("evaluate", [*SHIPPED, "--model.written=empty.ckpt"], "empty.ckpt is a file"),
    ("annotate", ["--model.backbone=text.ckpt"], "text.ckpt is a file"),
    ("train", [*FIT, "--model.init_args.backbone=text.ckpt"], "text.ckpt is a file"),
    ("train", [*LATENT_RM, *SHIPPED, "--model.reward_model=empty.ckpt"], "empty.ckpt is a file"),
    # an empty file where an object's options are meant
    ("evaluate", [*EVALUATE, "--model.answer_sampler=empty.ckpt"], "--model.answer_sampler empty.ckpt is an empty file"),
    ("evaluate", [*EVALUATE, "--trainer.callbacks=empty.ckpt"], "--trainer.callbacks empty.ckpt is an empty file"),
    ("evaluate", [*EVALUATE, "--trainer.logger=empty.ckpt"], "--trainer.logger empty.ckpt is an empty file"),
    ("train", [*FIT, "--trainer.logger=empty.ckpt"], "--trainer.logger empty.ckpt is an empty file"),
    # values without effect, or out of their range
    ("evaluate", [*SHIPPED, "--model.max_written_tokens=5"], "max_written_tokens 5 is for --model.written"),
    ("evaluate", [*SHIPPED, "--data.hub_config=x"], "--data.hub_config x has no effect here: it is for files and hub sets"),
    ("evaluate", [*SHIPPED, "--data.question_column=x"], "--data.question_column x has no effect here"),
    ("evaluate", [*EVALUATE, "--data.source=rows.jsonl", "--data.size=5"], "has no effect here: it is for gsm-symbolic"),
    ("evaluate", [*EVALUATE, "--data.source=rows.jsonl", "--data.templates=[43]"], "--data.templates [43] has no effect"),
    ("evaluate", [*EVALUATE, "--data.source=gsm8k", "--data.seed=5"], "--data.limit takes the first"),
    ("evaluate", [*EVALUATE, "--data.source=rows.jsonl", "--data.hub_config=main"], "hub sets that have configurations"),
    ("evaluate", [*EVALUATE, "--data.source=rows.jsonl", "--data.split=test"], "a file has no splits"),
    ("evaluate", [*EVALUATE, "--data.skip_bad_rows=true"], "gsm-symbolic has no rows"),
    ("annotate", [*EVALUATE, "--data.source=rows.jsonl", "--data.size=5"], "--data.size 5 has no effect"),
    ("annotate", [*EVALUATE, "--model.num_continuations=0", "--model.last=own"], "prefixes get no values"),
    ("annotate", [*EVALUATE, "--model.num_continuations=0", "--model.continue_uniform=true"], "prefixes get no values"),
    ("train", [*FIT, "--data.train=rows.jsonl", "--data.val=rows.jsonl", "--data.templates=[43]"], "is none of the sources"),
    ("train", [*FIT, "--data.val=rows.jsonl", "--data.val_seed=3"], "other validation sets are as they are"),
    ("train", [*FIT, "--data.train=rows.jsonl", "--data.fresh_per_epoch=true"], "as they are in every epoch"),
    ("train", [*FIT, "--data.question_column=Body"], "which none of the sources is"),
    ("train", [*FIT, "--data.train=masked.csv", "--data.question_column=Body"], "the columns of masked problems are known"),
    ("train", [*FIT, "--data.init_args.step_range=[1,2]"], "it is for tables"),
    ("train", [*FIT, "--data.train=rows.jsonl", "--data.train_split=train"], "a file has no splits"),
    ("train", [*FIT, "--data.val=rows.jsonl", "--data.val_split=dev"], "a file has no splits"),
    ("train", [*FIT, "--data.hub_config=main"], "it is for hub sets"),
    ("train", [*FIT, "--data.val=null", "--data.val_size=3"], "there is no validation (--data.val null)"),
    ("train", [*LATENT_RM, "--data.val_folder=x", "--data.val_share=0.1"], "those of --data.val_folder"),
    ("train", [*LATENT_RM, "--data.val_folder=null", "--data.val_share=0", "--data.val_batch_size=3"], "there is no validation"),
    ("train", [*LATENT_RM, "--model.loss=bce", "--model.targets=raw"], "it is for --model.loss contrastive"),
    ("evaluate", [*SHIPPED, "--data.num_workers=100000"], "would start as many processes"),
    ("evaluate", [*EVALUATE, "--model.answer_sampler.temperature=0"], "temperature"),
    ("evaluate", [*EVALUATE, "--model.answer_sampler.top_p=1.5"], "top_p"),
    ("evaluate", [*EVALUATE, "--model.aggregations=majority_voting"], "--model.aggregations must be"),
    ("evaluate", [*EVALUATE, "--config=reduction.yaml"], "step score reduction 'median' is unknown"),
    ("evaluate", [*SHIPPED, "--data.num_workers=-1"], "num_workers must be at least 0, got -1"),
    ("evaluate", [*EVALUATE, "--trainer.accelerator=cpu", "--trainer.devices=1000000"], "would start as many processes"),
    # the trainer
    ("evaluate", [*EVALUATE, "--trainer.accelerator=tpuu"], "Available names are"),
    ("evaluate", [*EVALUATE, "--trainer.accelerator=cpu", "--trainer.devices=0"], "--trainer options do not fit"),
    ("evaluate", [*EVALUATE, "--trainer.precision=64-mixed"], "--trainer.precision must be"),
    ("evaluate", [*EVALUATE, "--trainer.strategy=dpp"], "--trainer options do not fit"),
    ("evaluate", [*EVALUATE, "--trainer.fast_dev_run=true"], "give --config configs/evaluate/debug.yaml"),
    ("evaluate", [*EVALUATE, "--trainer.limit_predict_batches=3"], "give --data.limit"),
    ("evaluate", [*EVALUATE, "--trainer.overfit_batches=3"], "give --data.limit"),
    ("evaluate", [*EVALUATE, "--trainer.max_time=00:00:01:00"], "the same command goes on"),
    ("evaluate", [*EVALUATE, "--trainer.max_epochs=3"], "a prediction does not use it"),
    ("evaluate", [*EVALUATE, "--trainer.default_root_dir=x"], "give --output"),
    ("annotate", [*EVALUATE, "--trainer.barebones=true"], "a prediction does not use it"),
    ("annotate", [*EVALUATE, "--trainer.reload_dataloaders_every_n_epochs=1"], "a prediction does not use it"),
    ("train", [*FIT, "--config=accumulate.yaml"], "give --model.global_batch_size"),
    ("train", [*FIT, "--trainer.overfit_batches=2"], "give --data.train_size"),
    ("train", [*FIT, "--trainer.reload_dataloaders_every_n_epochs=1"], "a function of the epoch already"),
    ("train", [*FIT, "--trainer.max_epochs=0"], "--trainer.max_epochs 0 trains nothing"),
    ("train", [*FIT, "--trainer.max_steps=0"], "--trainer.max_steps 0 trains nothing"),
    ("train", [*FIT, "--trainer.limit_train_batches=0.0"], "--trainer.limit_train_batches 0.0 trains nothing"),
    ("train", [*FIT, "--trainer.check_val_every_n_epoch=0"], "is no number of epochs"),
    ("train", [*FIT, "--trainer.val_check_interval=0"], "is no number of batches"),
    ("train", [*FIT, "--trainer.gradient_clip_val=-1"], "is no norm of a gradient"),
    ("train", [*FIT, "--trainer.profiler=nonsense"], "can only be one of"),
    ("train", [*FIT, "--trainer.limit_val_batches=2.5"], "has to be in [0.0, 1.0] or an int"),
    ("train", [*FIT, "--trainer.max_time=soon"], "not a valid duration"),
    ("train", [*FIT, "--trainer.limit_test_batches=1"], "a training tests nothing"),
    ("train", [*FIT, "--trainer.accelerator=cpu", "--trainer.devices=0"], "--trainer options do not fit"),
    # callbacks and loggers
    ("train", [*FIT, "--config=typo.yaml"], "callbacks.ModelChekpoint' (did you mean ModelCheckpoint?)"),
    ("train", [*FIT, "--config=argument.yaml"], "save_best_only (did you mean save_weights_only?)"),
    ("train", [*FIT, "--config=value.yaml"], "ModelCheckpoint cannot be made: Invalid value for save_top_k=-7"),
    ("train", [*FIT, "--config=second.yaml"], "--trainer.callbacks[1]"),
    ("train", [*FIT, "--config=monitor.yaml"], "EarlyStopping monitors 'val_loss', which nobody logs; there are: train/loss"),
    ("train", [*LATENT_RM, "--config=monitor.yaml"], "EarlyStopping monitors 'val_loss', which nobody logs; there are:"),
    ("train", [*FIT, "--trainer.logger=WandbLoger"], "did you mean WandbLogger?"),
    ("train", [*FIT, "--trainer.logger=MLFlowLogger"], "MLFlowLogger cannot be made: Requirement 'mlflow"),
    ("annotate", [*EVALUATE, "--trainer.logger=true"], "--trainer.logger has nothing to log in an annotation"),
    ("annotate", [*EVALUATE, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=x"], "has nothing to log"),
    ("evaluate", [*EVALUATE, "--trainer.callbacks=ModelSummary"], "ModelSummary has nothing to do in a prediction"),
    ("evaluate", [*EVALUATE, "--config=monitor.yaml"], "EarlyStopping has nothing to do in a prediction"),
    ("evaluate", [*EVALUATE, "--config=typo.yaml"], "did you mean ModelCheckpoint?"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with bad files in it."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def tree(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("command", "args", "part"), CASES, ids=lambda value: value if isinstance(value, str) else value[-1:]
)
def test_bad_input_is_one_sentence_and_writes_nothing(command, args, part, folder, capsys):
    before = tree(folder)
    assert COMMANDS[command](args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert part in error
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("evaluate", [*EVALUATE, "--output=new"]),
        ("evaluate", EVALUATE),
        ("annotate", EVALUATE),
        ("train", FIT),
        ("sweep", ["--vary=model.seed=0,1", *EVALUATE]),
        ("report", ["x", "--out=new"]),
        ("export", ["x", "--out=new"]),
        ("study", [f"--study={STUDY}"]),
    ],
)
def test_a_file_system_that_takes_nothing_is_one_sentence_before_anything_is_made(
    command, args, folder, monkeypatch, capsys
):
    def refuse(**where):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # root, as which tests may run, writes wherever one can
    before = tree(folder)
    assert COMMANDS[command](args) == 2
    error = capsys.readouterr().err
    assert f"nothing can be put in {folder} (Read-only file system)" in error and error.count("\n") == 1, error
    assert tree(folder) == before


def test_every_option_that_is_refused_is_on_the_page_of_lightning_s_habits():
    page = (CONFIGS.parents[1] / "docs" / "lightning.md").read_text()
    named = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", page)) | {"barebones"}
    loop = {
        "max_epochs",
        "val_check_interval",
        "gradient_clip_val",
    }  # those of the training loop are refused as a group
    predict, fit = NO_EFFECT["predict"], NO_EFFECT["fit"]
    told = {name for name, instead in predict.items() if instead != NOT_USED}
    assert told - {"enable_checkpointing", "enable_model_summary"} <= named
    assert set(fit) <= named and loop <= set(predict)


def test_a_character_that_the_terminal_cannot_hold_is_replaced():
    code = "import sys; from commands.guard import main_guard; sys.exit(main_guard(lambda: print('Bär ✓')))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(CONFIGS.parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "B?r ?\n"


def test_the_table_is_of_every_command():
    """`python -m commands` lists them."""
    listed = {name.rpartition(" ")[2].rpartition(".")[2] for name in commands()} - {"py"}
    assert {command for command, _, _ in CASES} == listed | {"train", "evaluate"}
    assert len(CASES) >= 60
    assert all(summary for summary in commands().values())

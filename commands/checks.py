"""What can be known to fail before a model is loaded: trainer options without effect, callbacks and loggers that cannot work."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from importlib import import_module
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from commands.launch import check_processes
from latent_tts.errors import UserError

Stage = Literal["fit", "validate", "predict"]

_MOST_PROCESSES = 16  # on a CPU, or as many as it has cores: thousands are a slip that stops the machine
NOT_USED = "a prediction does not use it"
NO_EFFECT: dict[Stage, dict[str, str]] = {
    "predict": {
        "fast_dev_run": "give --config configs/evaluate/debug.yaml, or --data.limit",
        "limit_predict_batches": "give --data.limit, the number of problems",
        "overfit_batches": "give --data.limit, the number of problems",
        "max_time": "the same command goes on after any stop: send SIGTERM, or let the scheduler",
        "default_root_dir": "give --output",
        "enable_checkpointing": "records are written as they come, and the same command goes on",
        "enable_model_summary": "report.md says what was evaluated",
        "use_distributed_sampler": "the data module shares problems out by itself",
    }
    | dict.fromkeys(
        (
            "max_epochs", "min_epochs", "max_steps", "min_steps", "limit_train_batches", "limit_val_batches",
            "limit_test_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps",
            "log_every_n_steps", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
            "detect_anomaly", "sync_batchnorm",
            "reload_dataloaders_every_n_epochs", "barebones", "model_registry", "enable_autolog_hparams",
        ),
        NOT_USED,
    ),
    "fit": {
        "accumulate_grad_batches": "give --model.global_batch_size, the examples of an optimizer step, from which it follows",
        "overfit_batches": "give --data.train_size and --data.val_size, with the same file for both",
        "limit_test_batches": "a training tests nothing",
        "limit_predict_batches": "a training predicts nothing",
        "reload_dataloaders_every_n_epochs": "the batches are a function of the epoch already",
        "use_distributed_sampler": "the data module shares examples out by itself",
        "sync_batchnorm": "the models have no batch normalization",
        "barebones": "it would switch off checkpoints and metrics",
        "model_registry": "give --output, and `python -m commands.export`",
    },
    "validate": {},
}  # fmt: skip
_NOTHING = "trains nothing: give at least 1"
# What Lightning takes and ends on in a traceback, or follows to no training and to gradients of the other sign
_OUT_OF_RANGE: dict[str, tuple[Callable[[float], bool], str]] = {
    "max_epochs": (lambda value: value == 0, _NOTHING),
    "max_steps": (lambda value: value == 0, _NOTHING),
    "limit_train_batches": (lambda value: value == 0, _NOTHING),
    "check_val_every_n_epoch": (
        lambda value: value < 1,
        "is no number of epochs: give at least 1, or null to count batches",
    ),
    "val_check_interval": (
        lambda value: value <= 0,
        "is no number of batches and no share of an epoch: give more than 0",
    ),
    "gradient_clip_val": (lambda value: value < 0, "is no norm of a gradient: give more than 0, or null"),
}
NO_EFFECT["validate"] = NO_EFFECT["fit"] | {"limit_train_batches": "a validation trains nothing"}


def check_trainer(options: Mapping[str, Any], own: Mapping[str, Any], stage: Stage) -> None:
    """Refuses an option of the trainer that would be accepted without effect, or is out of its range.

    Args:
        options: Those of the run.
        own: The defaults of the command where they are not Lightning's.
        stage: What the run does.

    Raises:
        UserError: Such an option has another value than its default, or one that no training can be made with.
    """
    defaults = {name: p.default for name, p in inspect.signature(Trainer.__init__).parameters.items()} | dict(own)
    for name, instead in NO_EFFECT[stage].items():
        value = options.get(name)
        if value not in (None, False, defaults[name]):
            raise UserError(f"--trainer.{name} {shown(value)} is not for this command: {instead}.")
    for name, (is_outside, why) in _OUT_OF_RANGE.items() if stage == "fit" else ():
        value = options.get(name)
        if isinstance(value, int | float) and is_outside(value):
            raise UserError(f"--trainer.{name} {shown(value)} {why}.")


def check_machine(options: Mapping[str, Any]) -> None:
    """Makes a trainer on trial, of what the machine and the launcher decide about and of what has a range.

    Raises:
        UserError: There is no such device, strategy or precision, they do not fit each other, a value is out of its range, or a
            launcher has started another number of processes; or a CPU would get thousands of them.
    """
    names = (
        "accelerator", "strategy", "devices", "num_nodes", "precision", "plugins", "deterministic", "profiler", "max_time",
        "limit_train_batches", "limit_val_batches", "val_check_interval", "gradient_clip_algorithm",
    )  # fmt: skip
    arguments = {name: _argument(f"--trainer.{name}", options[name]) for name in names if name in options}
    trainer = made(lambda: Trainer(**arguments, logger=False, enable_checkpointing=False))
    check_processes(trainer)
    most = max(_MOST_PROCESSES, os.cpu_count() or 1)
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > most:
        raise UserError(
            f"--trainer.devices {trainer.num_devices} would start as many processes here: give at most {most}."
        )


def made(trainer: Callable[[], Trainer]) -> Trainer:
    """A trainer.

    Raises:
        UserError: Its options do not fit this machine or each other.
    """
    try:
        return trainer()
    except UserError:
        raise
    except (MisconfigurationException, ImportError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"The --trainer options do not fit this machine or each other: {reason}.") from error


def check_objects(options: Mapping[str, Any], stage: Stage, logged: Sequence[str] | None) -> None:
    """Makes the callbacks and loggers of the options once, on trial.

    Args:
        options: Those of the trainer; each object as {class_path, init_args}.
        stage: What the run does.
        logged: Names, or patterns of names, of what the module logs; None where it does not say so.

    Raises:
        UserError: One of them cannot be made, has nothing to do in this run, or waits for a metric that nobody logs.
    """
    callbacks = {name: make(name, entry) for name, entry in entries("callbacks", options.get("callbacks"))}
    for name, entry in entries("logger", options.get("logger")):
        make(name, entry)
    declared = [pattern for callback in callbacks.values() for pattern in getattr(callback, "logged_metrics", ())]
    for name, callback in callbacks.items():
        kind = type(callback).__name__
        if (
            stage == "predict"
            and not _has_hook(callback, "predict")
            and _has_hook(callback, "train", "fit", "validation")
        ):
            raise UserError(f"{name}: {kind} has nothing to do in a prediction, only in a training.")
        monitor = getattr(callback, "monitor", None)
        if monitor is None or logged is None or stage != "fit":
            continue
        known = [*logged, *declared]
        if not any(fnmatch(monitor, pattern) for pattern in known):
            raise UserError(f"{name}: {kind} monitors {monitor!r}, which nobody logs; there are: {', '.join(known)}.")


def _has_hook(callback: Callback, *words: str) -> bool:
    """Whether a callback has a hook of its own whose name holds one of these words."""
    hooks = [name for name in vars(Callback) if any(word in name for word in words)]
    return any(getattr(type(callback), name, None) is not getattr(Callback, name) for name in hooks)


def entries(option: str, value: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """The objects of an option that takes one or several, each with the words that name it to a user."""
    listed = value if isinstance(value, list | tuple) else [value]
    named = [
        (f"--trainer.{option}[{i}]" if len(listed) > 1 else f"--trainer.{option}", one) for i, one in enumerate(listed)
    ]
    return [(name, one) for name, one in named if isinstance(one, Mapping) and "class_path" in one]


def make(name: str, entry: Any) -> Any:
    """An object out of {class_path, init_args}, and of those in its arguments.

    Raises:
        UserError: Its class cannot be imported, or does not take the arguments.
    """
    module, _, cls = str(entry["class_path"]).rpartition(".")
    try:
        arguments = {key: _argument(name, value) for key, value in dict(entry.get("init_args") or {}).items()}
        return getattr(import_module(module), cls)(**arguments, **dict(entry.get("dict_kwargs") or {}))
    except UserError:
        raise
    except Exception as error:  # whatever a constructor of somebody else raises is what the user has to know
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{name}: {cls} cannot be made: {reason or type(error).__name__}.") from error


def _argument(name: str, value: Any) -> Any:
    if isinstance(value, Mapping) and "class_path" in value:
        return make(name, value)
    return [_argument(name, one) for one in value] if isinstance(value, list) else value


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def logged_by(class_path: str) -> Sequence[str] | None:
    """What a module says that it logs; None where it says nothing."""
    module, _, name = class_path.rpartition(".")
    logged: Sequence[str] | None = getattr(getattr(import_module(module), name), "logged_metrics", None)
    return logged

"""From the checkpoint of a training to a folder in the published layout.

python -m commands.export runs/tiny-coconut --out checkpoints/tiny-coconut
python -m commands.export runs/tiny-coconut --push OWNER/NAME --private
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from commands.guard import main_guard
from commands.hub import CARD, check_hub_name, listed, model_card, push
from commands.tools import ToolArguments, folder
from latent_tts.errors import UserError
from latent_tts.evaluation.run_folder import read_run

WEIGHTS = ("best", "last")


def export_run(
    run: Path, out: Path, weights: str | None = None, dtype: str = "float32", adapters_only: bool = False
) -> None:
    """Writes the model of a training.

    What the training started from must still be where it was: shape and tokenizer are taken from there.

    Args:
        run: The folder of a training, or one of its checkpoints.
        out: Where to write.
        weights: ``best`` or ``last`` of a folder's checkpoints; None takes the best, or the last where there is no best.
        dtype: Type the weights are stored in.
        adapters_only: Whether to leave out the weights of the base model.

    Raises:
        UserError: There is no such checkpoint, or there are no adapters in it to store alone.
    """
    from lightning_modules.checkpoint_reading import read_checkpoint
    from lightning_modules.trainings import TRAININGS

    checkpoint = run if run.suffix == ".ckpt" else checkpoint_of(run, weights)
    name = read_checkpoint(checkpoint)["training"]["module"]
    if name not in TRAININGS:
        raise UserError(f"{str(checkpoint)!r} is of {name!r}, which is none of the trainings {', '.join(TRAININGS)}.")
    TRAININGS[name].load_from_checkpoint(checkpoint).export(out, dtype, adapters_only)
    print(f"wrote {out} from {checkpoint}")


def checkpoint_of(run: Path, weights: str | None) -> Path:
    """The best or last checkpoint of a training's folder.

    Raises:
        UserError: There is none.
    """
    files = [run / "checkpoints" / f"{name}.ckpt" for name in ([weights] if weights else WEIGHTS)]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(f"There is no {' or '.join(map(str, files))}: name the folder of a training.")
    return found


def push_run(
    run: Path, name: str, private: bool, dry_run: bool, out: Path | None, export: Callable[[Path], None]
) -> None:
    """Exports a training with its card, and uploads both.

    Args:
        run: The folder of a training.
        name: OWNER/NAME.
        private: Whether a repository that is made is private.
        dry_run: Whether to list the files and upload nothing.
        out: Where the export stays; None keeps none.
        export: Writes the model to a folder.
    """
    described = read_run(run)
    if described is None:
        raise UserError(f"{run} holds no run.json, from which the card is written: name the folder of a training.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model" if out is None else out
        export(folder)
        (folder / CARD).write_text(model_card(described, name), encoding="utf-8")
        if dry_run:
            print("\n".join([f"would upload to {name}{' (private)' if private else ''}:", *listed(folder)]))
        else:
            print(f"uploaded: {push(folder, name, private)}")


def main(args: Sequence[str] | None = None) -> None:
    parser = ToolArguments(description="Write the model of a training in the published layout.")
    parser.add_argument("run", type=Path, help="Folder of a training, or one of its checkpoints (.ckpt).")
    parser.add_argument("--out", type=folder, help="Folder to write.")
    parser.add_argument(
        "--weights", choices=WEIGHTS, help="Of which checkpoint; by default the best, where there is one."
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="Storage type.")
    parser.add_argument("--adapters-only", action="store_true", help="Leave out the weights of the base model.")
    parser.add_argument("--push", metavar="OWNER/NAME", help="Upload the model and its card to the hub.")
    parser.add_argument("--private", action="store_true", help="A repository that --push makes is private.")
    parser.add_argument("--dry_run", action="store_true", help="List what --push would upload, and upload nothing.")
    options = parser.parse_args(args)
    if options.push is None:
        if options.out is None or options.private or options.dry_run:
            raise UserError("Give --out FOLDER, or --push OWNER/NAME (to which --private and --dry_run belong).")
        export_run(options.run, options.out, options.weights, options.dtype, options.adapters_only)
        return
    check_hub_name(options.push)
    push_run(
        options.run,
        options.push,
        options.private,
        options.dry_run,
        options.out,
        lambda folder: export_run(options.run, folder, options.weights, options.dtype, options.adapters_only),
    )


if __name__ == "__main__":
    sys.exit(main_guard(main))

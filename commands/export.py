"""From the checkpoint of a training to a folder in the published layout.

python -m commands.export runs/tiny-coconut --out checkpoints/tiny-coconut
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from commands.guard import main_guard
from commands.tools import ToolArguments
from latent_tts.errors import UserError

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
    from lightning_modules.training_module import read_checkpoint
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


def main(args: Sequence[str] | None = None) -> None:
    parser = ToolArguments(description="Write the model of a training in the published layout.")
    parser.add_argument("run", type=Path, help="Folder of a training, or one of its checkpoints (.ckpt).")
    parser.add_argument("--out", type=Path, required=True, help="Folder to write.")
    parser.add_argument(
        "--weights", choices=WEIGHTS, help="Of which checkpoint; by default the best, where there is one."
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="Storage type.")
    parser.add_argument("--adapters-only", action="store_true", help="Leave out the weights of the base model.")
    options = parser.parse_args(args)
    export_run(options.run, options.out, options.weights, options.dtype, options.adapters_only)


if __name__ == "__main__":
    sys.exit(main_guard(main))

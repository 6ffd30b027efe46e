"""Trains a latent reasoning or reward model: `python train.py fit --config configs/train/tiny-coconut.yaml`."""

from commands.guard import main_guard
from commands.importing import importing


def main() -> None:
    with importing():
        from commands.train import TrainingCLI

    TrainingCLI()


if __name__ == "__main__":
    raise SystemExit(main_guard(main, ends_process=True))

"""Trains a latent reasoning or reward model: `python train.py fit --config configs/train/tiny-coconut.yaml`."""

from latent_tts.cli import main_guard
from latent_tts.start_up import import_torchmetrics_alone


def main() -> None:
    import_torchmetrics_alone()
    from lightning_modules.training_cli import TrainingCLI

    TrainingCLI()


if __name__ == "__main__":
    raise SystemExit(main_guard(main))

"""Evaluates parallel test-time scaling of a latent reasoning model: `python evaluate.py --help`.

`python evaluate.py annotate` makes the data that a latent reward model is trained on.
"""

import sys

from latent_tts.cli import main_guard
from latent_tts.start_up import import_torchmetrics_alone


def main() -> None:
    import_torchmetrics_alone()
    if sys.argv[1:2] == ["annotate"]:
        from lightning_modules.annotation_cli import AnnotationCLI

        AnnotationCLI(sys.argv[2:]).run()
        return
    from lightning_modules.evaluation_cli import EvaluationCLI

    EvaluationCLI().run()


if __name__ == "__main__":
    raise SystemExit(main_guard(main))

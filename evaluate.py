"""Evaluates parallel test-time scaling of a latent reasoning model: `python evaluate.py --help`.

`python evaluate.py annotate` makes the data that a latent reward model is trained on.
"""

import sys

from commands.guard import main_guard


def main() -> None:
    if sys.argv[1:2] == ["annotate"]:
        from commands.annotate import AnnotationCLI

        AnnotationCLI(sys.argv[2:]).run()
        return
    from commands.evaluate import EvaluationCLI

    EvaluationCLI().run()


if __name__ == "__main__":
    raise SystemExit(main_guard(main))

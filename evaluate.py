"""Evaluates parallel test-time scaling of a latent reasoning model: `python evaluate.py --help`.

`python evaluate.py annotate` makes the data that a latent reward model is trained on; `python evaluate.py report RUN` makes the
report of a run from its records, `python evaluate.py inspect RUN PROBLEM` shows one of its problems.
"""

import sys

from commands.guard import main_guard


def main() -> None:
    if sys.argv[1:2] == ["annotate"]:
        from commands.annotate import AnnotationCLI

        AnnotationCLI(sys.argv[2:]).run()
        return
    if sys.argv[1:2] == ["report"]:
        from commands.report import main as report

        report(sys.argv[2:])
        return
    if sys.argv[1:2] == ["inspect"]:
        from commands.inspect import main as inspect

        inspect(sys.argv[2:])
        return
    from commands.evaluate import EvaluationCLI

    EvaluationCLI().run()


if __name__ == "__main__":
    raise SystemExit(main_guard(main))

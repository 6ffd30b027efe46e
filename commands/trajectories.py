"""Draws the latent trajectories of a problem's rollouts in two dimensions, runs side by side, right and wrong told apart.

python evaluate.py trajectories results/sigma-0.5 results/sigma-2 --problem 12 --out results/trajectories-12.png
"""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from commands.guard import main_guard
from commands.tools import ToolArguments
from latent_tts.errors import UserError
from latent_tts.evaluation.run_folder import require_writable

if TYPE_CHECKING:
    from latent_tts.evaluation.records import Record
    from latent_tts.evaluation.report.figures.trajectories import Method, Trajectories

_KINDS = (".png", ".svg", ".pdf")


def draw_trajectories(runs: Sequence[Path], problem: str, out: Path, method: Method = "pca") -> None:
    """Writes the figure of a problem.

    Latents are read where a run keeps them. Else its rollouts are drawn anew from the settings in its config.yaml, which gives
    the same ones, and are compared with the record; nothing of a run is changed.

    Args:
        runs: Folders of evaluations.
        problem: Its id, its number in the first run, or a piece of its question.
        out: The file, whose ending says its format.
        method: How latents are laid into a plane.

    Raises:
        UserError: A folder holds no evaluation, no one problem is meant or a run has it not, the rollouts do not come out as they
            were recorded, or the file's ending is no format.
    """
    from latent_tts.evaluation.problem_search import find_problem
    from latent_tts.evaluation.remake import ReadRun
    from latent_tts.evaluation.report.figure_files import figure_bytes
    from latent_tts.evaluation.report.figures.trajectories import trajectories_figure
    from latent_tts.evaluation.run_labels import run_labels, run_names
    from latent_tts.files.whole import write_whole

    if out.suffix not in _KINDS:
        raise UserError(f"--out {out} must end in {', '.join(_KINDS)}: the ending says the format.")
    read = [ReadRun(run) for run in runs]
    _, first = find_problem(read[0].records(), problem, str(runs[0]))
    labels = run_labels([one.described for one in read]) if len(runs) > 1 else [""]
    shown = []
    for one, label, name in zip(read, labels, run_names(runs), strict=True):
        record = first if one is read[0] else find_problem(one.records(), first.problem_id, str(one.folder))[1]
        shown.append(kept(one.folder, record, label or name) or redrawn(one.folder, record, label or name))
    figure = trajectories_figure(shown, f"{first.question} (answer: {first.gold:g})", method)
    write_whole(out, figure_bytes(figure, out.suffix[1:]))
    print(f"{out}: {len(first.rollouts)} rollouts of problem {first.problem_id} in {', '.join(map(str, runs))}")


def kept(run: Path, record: Record, label: str) -> Trajectories | None:
    """The latents of a record's rollouts that the run keeps; None where it has not those of all."""
    from latent_tts.evaluation.latent_files import LatentFiles
    from latent_tts.evaluation.report.figures.trajectories import Trajectories

    files = LatentFiles(run)
    if files.num_rollouts(record.problem_id) < len(record.rollouts):
        return None
    found = files.read(record.problem_id)
    return Trajectories(label, found.latents, found.num_latents, [rollout.correct for rollout in record.rollouts])


def redrawn(run: Path, record: Record, label: str) -> Trajectories:
    """The latents of a record's rollouts, drawn anew; they are a function of seed, problem and number.

    Raises:
        UserError: The answers differ from those of the record.
    """
    from commands.evaluate import EvaluationCLI
    from latent_tts.evaluation.report.figures.trajectories import Trajectories

    evaluator = EvaluationCLI(["--config", str(run / "config.yaml")]).model.evaluator
    count = len(record.rollouts)
    drawn = evaluator.engine.rollout([record.question], count, evaluator.seed, [record.problem_id])
    if drawn.texts[0] != [rollout.text for rollout in record.rollouts]:
        raise UserError(
            f"The rollouts of problem {record.problem_id} do not come out as {run} has recorded them: draw trajectories of runs "
            "whose latents were not replaced, with the model, device and version that they were made with."
        )
    correct = [rollout.correct for rollout in record.rollouts]
    return Trajectories(label, drawn.latents[0].cpu(), drawn.num_latents[0].cpu(), correct)


def main(args: Sequence[str] | None = None) -> None:
    from latent_tts.evaluation.report.figures.trajectories import Method

    summary, _, examples = str(__doc__).partition("\n")
    parser = ToolArguments(
        prog="evaluate.py trajectories",
        description=summary,
        epilog=examples.strip(),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="Folder of an evaluation, finished or not.")
    parser.add_argument(
        "--problem", required=True, help="Its id, its number in the first run, or a piece of its question."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("trajectories.png"),
        help="The file: .png, .svg or .pdf; by default trajectories.png.",
    )
    parser.add_argument(
        "--method",
        choices=get_args(Method),
        default="pca",
        help="pca (the default), or tsne where scikit-learn is installed.",
    )
    options = parser.parse_args(args)
    require_writable(options.out.parent, "--out")
    draw_trajectories(options.runs, options.problem, options.out, options.method)


if __name__ == "__main__":
    sys.exit(main_guard(main))

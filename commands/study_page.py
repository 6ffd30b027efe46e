"""Fills the tables of docs/study.md, and draws its figures, from the metrics that are kept of the runs.

python -m commands.study_page
"""

import sys
from pathlib import Path

from commands.tools import run_tool


def main(
    page: Path = Path("docs/study.md"), kept: Path = Path("docs/runs"), figures: Path = Path("docs/study")
) -> None:
    """Make every table of the page anew, and every figure whose studies are kept.

    Args:
        page: Text with marks where the tables go (`latent_tts/evaluation/chapter/page.py`).
        kept: Folder of the kept runs.
        figures: Folder of the figures.
    """
    from latent_tts.errors import UserError
    from latent_tts.evaluation.chapter.figures import FIGURES
    from latent_tts.evaluation.chapter.kept import read_kept
    from latent_tts.evaluation.chapter.page import filled
    from latent_tts.evaluation.report.figure_files import figure_bytes
    from latent_tts.files.whole import write_whole

    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page} cannot be read ({type(error).__name__}): give --page.") from error
    write_whole(page, filled(text, kept))
    for name, (draw, studies) in FIGURES.items():
        there = [read_kept(kept / study) for study in studies if (kept / study).is_dir()]
        if there:
            write_whole(figures / f"{name}.png", figure_bytes(draw(there), "png"))
    print(f"wrote {page} and {figures}/")


if __name__ == "__main__":
    sys.exit(run_tool(main))

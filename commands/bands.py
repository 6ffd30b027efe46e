"""Says whether runs of the published checkpoints come out where others found them.

python -m commands.bands --study published-coconut
"""

import sys
from pathlib import Path

from commands.tools import run_tool

BANDS = Path(__file__).parent.parent / "configs" / "published" / "bands.yaml"


def main(study: str, bands: Path = BANDS, kept: Path = Path("docs/runs")) -> None:
    """Print every published figure with its band, and the figure of a run beside it.

    Args:
        study: Name of the study, such as published-coconut.
        bands: File of the published figures.
        kept: Folder of the kept runs.

    Raises:
        UserError: There are no bands of that study, nothing is kept of it, or a run is of other problems.
    """
    from rich.console import Console

    from latent_tts.errors import UserError
    from latent_tts.evaluation.chapter.bands import check_bands, read_bands
    from latent_tts.evaluation.chapter.kept import read_kept

    published = read_bands(bands)
    if study not in published:
        raise UserError(f"{bands} has no figures of {study!r}; there are: {', '.join(published)}.")
    console, outside = Console(highlight=False), 0
    for run in read_kept(kept / study).runs:
        for one in check_bands(run, published[study][run.name]) if run.name in published[study] else []:
            ends = " to ".join(f"{100 * end:.2f}" for end in dict.fromkeys(one.band.published))
            ours = "not measured" if one.value is None else f"{100 * one.value:.2f}"
            verdict = {True: "in", False: "OUT", None: ""}[one.inside]
            band = f"{100 * one.band.low:.1f} to {100 * one.band.high:.1f}"
            console.print(
                f"{run.name:12} {one.band.key:20} published {ends}, band {band}, ours {ours} {verdict}".rstrip()
            )
            outside += one.inside is False
    console.print("All figures lie in their bands." if not outside else f"{outside} figures lie outside their bands.")


if __name__ == "__main__":
    sys.exit(run_tool(main))

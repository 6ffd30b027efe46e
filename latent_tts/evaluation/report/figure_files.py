"""Figures as files: PNG for where pictures are shown anywhere, SVG for where they are enlarged or printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_tts.files.whole import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
_LARGEST_SVG = 400_000  # bytes; one with many points is larger than its pixels


def save_figures(drawn: Mapping[str, Figure], folder: Path) -> dict[str, str]:
    """Writes NAME.png and NAME.svg of every figure, and takes away those of figures that are not drawn any more.

    Returns:
        Name -> path of the PNG, relative to the folder's parent.
    """
    for name, figure in drawn.items():
        for kind in _METADATA:
            write_whole(folder / f"{name}.{kind}", figure_bytes(figure, kind))
    _remove_others(folder, drawn)
    return {name: f"{folder.name}/{name}.png" for name in drawn}


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """A figure as `png` or `svg`: equal bytes for equal figures."""
    import matplotlib

    written = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "latent-tts", "svg.fonttype": "path"}):
        figure.savefig(written, format=kind, dpi=120, metadata=_METADATA[kind])
    return written.getvalue()


def to_embed(png: Path) -> bytes:
    """The content of the SVG beside a figure's PNG; of the PNG where that one is large."""
    svg = png.with_suffix(".svg")
    return svg.read_bytes() if svg.stat().st_size <= _LARGEST_SVG else png.read_bytes()


def _remove_others(folder: Path, names: Iterable[str]) -> None:
    kept = {f"{name}.{kind}" for name in names for kind in _METADATA}
    for path in folder.glob("*.*"):
        if path.suffix in (".png", ".svg") and path.name not in kept:
            path.unlink()

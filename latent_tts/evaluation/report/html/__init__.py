"""report.html: one file that holds tables, figures, and a browser over the problems; nothing else is needed to read it."""

from latent_tts.evaluation.report.html.comparison_page import comparison_html
from latent_tts.evaluation.report.html.page import PageProblems, html_parts
from latent_tts.evaluation.report.html.payload import BYTE_LIMIT, PART_ROOM

__all__ = ["BYTE_LIMIT", "PART_ROOM", "PageProblems", "comparison_html", "html_parts"]

"""From the numbers of metrics.json to what people read: tables for the console and report.md, and the figures."""

from latent_tts.evaluation.report.console import console_tables, print_tables
from latent_tts.evaluation.report.figure_files import save_figures
from latent_tts.evaluation.report.figures import figures
from latent_tts.evaluation.report.files import ReportRecords, write_report
from latent_tts.evaluation.report.markdown import markdown
from latent_tts.evaluation.report.run_summary import RunSummary, empty_summary, summarise
from latent_tts.evaluation.report.tensorboard import write_tensorboard
from latent_tts.evaluation.results import DASH, Cell, StrategyResult, curves, results
from latent_tts.evaluation.wording import facts

__all__ = [
    "DASH",
    "Cell",
    "ReportRecords",
    "RunSummary",
    "StrategyResult",
    "console_tables",
    "curves",
    "empty_summary",
    "facts",
    "figures",
    "markdown",
    "print_tables",
    "results",
    "save_figures",
    "summarise",
    "write_report",
    "write_tensorboard",
]

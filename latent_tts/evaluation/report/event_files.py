"""What torch's writer of event files leaves out: descriptions, pictures of files, charts of several margins, hyperparameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from latent_tts.evaluation.strategies import Strategy

if TYPE_CHECKING:
    from tensorboard.plugins.custom_scalar.layout_pb2 import Chart
    from torch.utils.tensorboard import SummaryWriter

BOUNDS = "_interval"
"""What the group of a chart's ends of intervals is named after its values."""


def tag_name(strategy: Strategy) -> str:
    """`best_of_n_16`: a strategy at its budget, as every logger can write it."""
    return strategy.key.replace("@", "_")


class Margins:
    """Several curves with intervals, and the tags that they are made of: GROUP/NAME, GROUP_interval/NAME_low and _high.

    TensorBoard draws all curves of a run in one colour, and their bands over each other: one chart has all the curves without
    bands, which markers tell apart, and each curve with its band has a chart of its own.

    Args:
        group: First part of the tags.
        names: Curves that are there already.
        bands: Whether there are charts of single curves with their bands.
    """

    def __init__(self, group: str, names: Iterable[str] = (), bands: bool = True) -> None:
        self.group, self.bands = group, bands
        self.names: dict[str, None] = dict.fromkeys(names)

    def tags(self, name: str) -> tuple[str, str, str]:
        """Tags of a curve's values, and of the lower and upper ends of their intervals."""
        bounds = f"{self.group}{BOUNDS}/{name}"
        return f"{self.group}/{name}", f"{bounds}_low", f"{bounds}_high"

    def scalars(self, name: str, values: Sequence[float]) -> dict[str, float]:
        """Tag -> value of a point: value, low, high."""
        self.names[name] = None
        return dict(zip(self.tags(name), values, strict=True))

    def add(self, writer: SummaryWriter, name: str, values: Sequence[float], step: int) -> None:
        """Writes a point of a curve: value, low, high."""
        for tag, value in self.scalars(name, values).items():
            add_scalar(writer, tag, value, step)


def add_scalar(writer: SummaryWriter, tag: str, value: float, step: int, text: str = "") -> None:
    """Writes a scalar with a description, which TensorBoard shows beside its title."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

    metadata = SummaryMetadata(summary_description=text) if text else None
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=float(value), metadata=metadata)])
    writer._get_file_writer().add_summary(summary, step)


def add_png(writer: SummaryWriter, tag: str, content: bytes) -> None:
    """Writes a picture as it is in a file, which saves drawing it again."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=content)
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]))


def charts_of(against: str, margins: Margins) -> Iterator[Chart]:
    """Margin charts, which TensorBoard never smooths: all curves as lines, then each with its band.

    Args:
        against: What the curves go against, for the titles.
        margins: The curves.
    """
    from tensorboard.plugins.custom_scalar.layout_pb2 import Chart, MarginChartContent

    def chart(title: str, rows: Iterable[tuple[str, str, str]]) -> Chart:
        series = [MarginChartContent.Series(value=value, lower=low, upper=high) for value, low, high in rows]
        return Chart(title=title, margin=MarginChartContent(series=series))

    rows = {name: margins.tags(name) for name in margins.names}
    yield chart(f"all against {against}", [(value, value, value) for value, _, _ in rows.values()])
    if margins.bands:
        for name, row in rows.items():
            yield chart(f"{name} against {against}, 95 % interval", [row])


def add_layout(writer: SummaryWriter, categories: Mapping[str, Mapping[str, Margins]]) -> None:
    """Writes the layout of CUSTOM SCALARS; of several in a run the last one holds.

    Args:
        writer: Of the run.
        categories: Title -> what curves go against -> the curves.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.plugins.custom_scalar import metadata
    from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Layout

    charts = {
        title: [one for item in curves.items() for one in charts_of(*item)] for title, curves in categories.items()
    }
    # TensorBoard shows the last chart of a category first.
    layout = Layout(category=[Category(title=title, chart=found[::-1]) for title, found in charts.items()])
    tensor = TensorProto(dtype="DT_STRING", string_val=[layout.SerializeToString()])
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME))
    value = Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, tensor=tensor, metadata=plugin)
    writer._get_file_writer().add_summary(Summary(value=[value]))


def add_hyperparameters(writer: SummaryWriter, values: Mapping[str, str | float], metrics: Sequence[str]) -> None:
    """Makes the run a row of HPARAMS, with the latest values of these tags as its metrics."""
    from torch.utils.tensorboard.summary import hparams

    for summary in hparams(dict(values), dict.fromkeys(metrics, 0.0)):
        writer._get_file_writer().add_summary(summary)

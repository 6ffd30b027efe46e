"""The dropout that a transformer was made with: how likely it is in training."""

from torch import nn


def set_dropout(model: nn.Module, probability: float) -> None:
    """Sets every dropout of a model, the ones that attention keeps as a number included."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif isinstance(module.__dict__.get("attention_dropout"), float):
            module.attention_dropout = probability  # type: ignore[assignment]

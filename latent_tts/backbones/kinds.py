"""The kinds of backbones by name: a new one is a file, and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from latent_tts.backbones.base import LatentBackbone
from latent_tts.backbones.coconut import Coconut
from latent_tts.backbones.codi import Codi
from latent_tts.backbones.colar import Colar
from latent_tts.backbones.cot import Cot

KINDS: dict[str, type[LatentBackbone]] = {cls.kind: cls for cls in (Coconut, Codi, Colar, Cot)}

# The type of options that name a kind: a command line lists and checks the names of the registry.
if TYPE_CHECKING:
    KindName = str
else:
    KindName = Literal[tuple(KINDS)]

"""COCONUT: the last hidden state is the next input, unchanged (arXiv 2412.06769)."""

from torch import Tensor

from latent_tts.backbones.base import START_OF_THOUGHT, LatentBackbone


class Coconut(LatentBackbone):
    """Six latent thoughts, each the hidden state after the final norm, then ``<|end-latent|>`` and ``### answer``."""

    kind = "coconut"
    default_prompt_form = "{question}\n" + START_OF_THOUGHT

    def next_latent(self, hidden: Tensor) -> Tensor:
        return hidden

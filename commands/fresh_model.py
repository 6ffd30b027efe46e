"""Makes a model to start from: random weights, and a tokenizer trained on GSM-Symbolic problems.

    python -m commands.fresh_model --out runs/scratch --model.architecture llama --model.hidden_size 256

The same arguments give the same files, byte for byte.
"""

import sys
from pathlib import Path

from commands.tools import run_tool
from datamodules.sources.gsm_symbolic import GSMSymbolic
from latent_tts.backbones.scratch import ScratchConfig, write_scratch_model
from latent_tts.evaluation.run_folder import require_writable

DEFAULT_MODEL = ScratchConfig()


def main(
    out: Path,
    model: ScratchConfig = DEFAULT_MODEL,
    templates: list[int] | None = None,
    num_examples: int = 6000,
    data_seed: int = 0,
) -> None:
    """Write a fresh model folder whose tokenizer is trained on generated GSM-Symbolic examples.

    Args:
        out: Folder to write.
        model: Shape of the model.
        templates: GSM-Symbolic templates to draw the tokenizer's text from; all that parse where it is left out.
        num_examples: Number of examples in the tokenizer's text.
        data_seed: Seed of the tokenizer's text.
    """
    require_writable(out, "--out")
    source = GSMSymbolic(data_seed, templates=templates, split="train")
    backbone = write_scratch_model(out, model, map(source.example, range(num_examples)))
    parameters = sum(p.numel() for p in backbone.parameters())
    print(f"wrote {out}: {model.architecture}, {parameters:,} parameters, {len(backbone.tokenizer)} tokens")


if __name__ == "__main__":
    sys.exit(run_tool(main))

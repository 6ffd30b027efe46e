"""Makes of a latent model a model that reasons in writing: its causal LM, opened with the prompt of its written steps.

    python -m commands.writer --backbone checkpoints/tiny-codi --out runs/tiny-codi-writer

A CODI is its own teacher and goes on writing steps, so that latent and written reasoning of the same weights can be compared.
"""

import sys
from pathlib import Path

from commands.tools import run_tool
from latent_tts.evaluation.run_folder import require_writable

OPENING = "{question}\n<|start-latent|><|end-latent|>"


def main(backbone: str, out: Path, prompt_form: str = OPENING) -> None:
    """Write the causal LM of a latent model as a folder of written reasoning (kind cot).

    Args:
        backbone: Folder or hub id of the latent model.
        out: Folder to write.
        prompt_form: What opens its written steps, with {question}: by default what CODI trains its teacher with.
    """
    from latent_tts.backbones import load_backbone
    from latent_tts.backbones.cot import Cot

    require_writable(out, "--out")
    latent = load_backbone(backbone)
    Cot(latent.model, latent.tokenizer, prompt_form=prompt_form).save_pretrained(out)
    print(f"wrote {out}: the causal LM of {backbone}, opened with {prompt_form!r}")


if __name__ == "__main__":
    sys.exit(run_tool(main))

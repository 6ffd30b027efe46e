"""Training of written reasoning: the baseline of the latent models, and where they start from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from latent_tts.backbones.cot import Cot
from latent_tts.backbones.lora import LoRA
from latent_tts.backbones.training import load_for_training
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample
from latent_tts.training.coconut_curriculum import ThoughtSequence, lay_out
from latent_tts.training.differentiable import collate, token_losses
from latent_tts.training.optimization import Optimization
from lightning_modules.backbone_module import BackboneModule
from lightning_modules.hyperparameters import options_of

DEFAULT_OPTIMIZATION = Optimization()


class ChainOfThoughtModule(BackboneModule):
    """Trains any Hugging Face causal LM to write its steps and then its answer.

    The loss is the mean cross-entropy over all tokens of steps and answers of the global batch; see TrainingModule for what it
    is independent of. `python evaluate.py --model.written FOLDER` reports such a model beside a latent one.

    Args:
        backbone: Folder or hub id of the causal LM to start from.
        prompt_form: What the model reads, with {question} and some text after it; by default the question and a line break.
        step_form: One written step, with {step}.
        answer_form: The answer, with {answer}; `###` and `The answer is:` are markers that the answer parser knows.
        optimization: Optimizer and learning rate.
        global_batch_size: Examples per optimizer step: micro batch x accumulated batches x processes. The number of
            accumulated batches is derived from it.
        lora: Adapters to train in place of all weights; null trains all weights.
        max_answer_tokens: Tokens that a validation answer may have, its steps included.
        seed: Seed of the draws made in training (dropout).
    """

    backbone: Cot

    def __init__(
        self,
        backbone: str,
        prompt_form: str | None = None,
        step_form: str = "{step}\n",
        answer_form: str = "### {answer}",
        optimization: Optimization = DEFAULT_OPTIMIZATION,
        global_batch_size: int = 128,
        lora: LoRA | None = None,
        max_answer_tokens: int = 128,
        seed: int = 0,
    ) -> None:
        for form, field in ((step_form, "{step}"), (answer_form, "{answer}")):
            if field not in form:
                raise UserError(f"The form {form!r} must hold {field}.")
        super().__init__(
            backbone=load_for_training(Cot, backbone, prompt_form=prompt_form, seed=seed),
            source=backbone,
            optimization=optimization,
            global_batch_size=global_batch_size,
            lora=lora,
            max_answer_tokens=max_answer_tokens,
            seed=seed,
        )
        self.step_form, self.answer_form = step_form, answer_form
        self.save_hyperparameters(options_of(self, locals()))

    @staticmethod
    def next_command(model: str, backbone: str) -> list[str]:
        return ["python", "evaluate.py", "--model.written", model]

    def losses(self, batch: Sequence[ReasoningExample]) -> Tensor:
        """Cross-entropy of every token of steps and answers: (labels,)."""
        return token_losses(self.backbone, collate(self.sequences(batch), self.backbone.pad_token_id, self.device))

    def training_positions(self, examples: Sequence[ReasoningExample]) -> list[int]:
        return [len(row.prompt_ids) + len(row.tail_ids) for row in self.sequences(examples)]

    def sequences(self, batch: Sequence[ReasoningExample]) -> list[ThoughtSequence]:
        """Examples as tokens; steps and answer are tokenized one by one."""
        backbone = self.backbone
        prompts = backbone.encode_prompts([example.question for example in batch])
        pieces = [
            [self.step_form.replace("{step}", step) for step in example.steps]
            + [self.answer_form.replace("{answer}", example.answer)]
            for example in batch
        ]
        return lay_out(
            prompts, [0] * len(batch), pieces, backbone.encode, backbone.end_of_thought_id, backbone.eos_token_id
        )

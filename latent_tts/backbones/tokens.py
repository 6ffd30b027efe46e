"""The numbers of tokens: each has a row in the model's tables, and an answer ends at those that are stop tokens."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latent_tts.errors import UserError


def check_rows(tokenizer: PreTrainedTokenizerBase, num_rows: int, what: str) -> None:
    """Refuses a tokenizer whose tokens a model has no embeddings for.

    Args:
        tokenizer: Of the model, as it is said to be.
        num_rows: Rows of the model's token embeddings.
        what: The model, for the sentence.

    Raises:
        UserError: Says how many it has of each.
    """
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= num_rows:
        raise UserError(
            f"The tokenizer of {what} has tokens up to number {largest}, and the model's embeddings have {num_rows} rows: "
            "give the model the tokenizer that it was trained with."
        )


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_rows: int) -> tuple[int, ...]:
    """Every token that tokenizer, config or generation config say a text ends with, the tokenizer's first.

    Args:
        model: The causal LM.
        tokenizer: Its tokenizer.
        num_rows: Rows of its token embeddings.

    Raises:
        UserError: There is none, or one is no token of the model's vocabulary.
    """
    places = {
        "the tokenizer": tokenizer,
        "config.json": model.config.get_text_config(),
        "generation_config.json": getattr(model, "generation_config", None),
    }
    found: dict[int, None] = {}
    for place, settings in places.items():
        value = getattr(settings, "eos_token_id", None)
        for token in value if isinstance(value, list | tuple) else [value]:
            if token is None:
                continue
            if type(token) is not int or not 0 <= token < num_rows:
                raise UserError(
                    f"By {place}, texts of this {model.config.model_type} model end with token {token!r}, and its vocabulary has "
                    f"the numbers 0 to {num_rows - 1}: mend eos_token_id there."
                )
            found[token] = None
    if not found:
        raise UserError(
            f"Neither tokenizer nor config of this {model.config.model_type} checkpoint names an end-of-text token: "
            "give eos_token_id in config.json."
        )
    return tuple(found)


def padding_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_rows: int, otherwise: int) -> int:
    """The token that fills up rows; old configs say that there is none by a negative number."""
    named = (tokenizer.pad_token_id, getattr(model.config.get_text_config(), "pad_token_id", None))
    return next((i for i in named if isinstance(i, int) and 0 <= i < num_rows), otherwise)

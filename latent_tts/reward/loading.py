"""From a folder or a hub id to a reward model, with every weight accounted for."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from latent_tts.attention.probe import check_packed
from latent_tts.backbones.base import LatentBackbone, embedding_table
from latent_tts.backbones.codi import Codi
from latent_tts.backbones.dropout import set_dropout
from latent_tts.backbones.files import (
    commit_of,
    load_tokenizer,
    made_with_fused_activations,
    resolve_folder,
)
from latent_tts.backbones.kinds import KINDS
from latent_tts.backbones.loading import _torch_dtype
from latent_tts.backbones.metadata import METADATA_FILE, read_metadata
from latent_tts.backbones.tokens import check_rows
from latent_tts.backbones.weight_files import read_safetensors
from latent_tts.backbones.weights import check_weights, fill
from latent_tts.errors import UserError
from latent_tts.reward.heads import HEADS, Head, HeadName
from latent_tts.reward.model import LatentRewardModel


def load_reward_model(
    name_or_folder: str | Path,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    dtype: str = "float32",
    revision: str | None = None,
) -> LatentRewardModel:
    """Loads a reward model in the published layout, or in ours, which adds ``latent_tts.json`` and the tokenizer.

    Args:
        name_or_folder: A folder, or a Hugging Face hub id.
        tokenizer: Where the tokenizer is, if the checkpoint has none of its own: the backbone's folder or hub id, or the
            tokenizer itself.
        dtype: Type the weights are held in, ``float32`` or ``bfloat16``.
        revision: Commit, tag or branch of a hub id; ``None`` takes its newest. ``commit`` of the model says which one it was.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        UserError: Not a checkpoint of a reward model, no tokenizer; weights missing, unexpected, resized or not finite; or
            a model that would not score exactly (docs/models.md).
    """
    folder = resolve_folder(name_or_folder, revision)
    metadata = {name: value for name, value in read_metadata(folder).items() if value is not None}
    weights = read_safetensors(folder)
    has_projector = any(key.startswith("projector.") for key in weights)
    if not any(key.startswith("classifier.") for key in weights):
        raise UserError(
            f"{folder} holds no weights of a scoring head (classifier.*): is it a backbone and not a reward model?"
        )
    kind = metadata.get("kind", "codi" if has_projector else "coconut")
    head = metadata.get("head", "linear")
    if kind not in KINDS or head not in HEADS:
        raise UserError(
            f"{folder / METADATA_FILE} names kind {kind!r} and head {head!r}; known: {list(KINDS)}, {list(HEADS)}."
        )
    torch_dtype = _torch_dtype(dtype)
    transformer = made_with_fused_activations(folder, lambda config: AutoModel.from_config(config, dtype=torch_dtype))
    projector = Codi.extra_modules(transformer.config)["projector"].to(torch_dtype) if has_projector else None
    classifier = _fill(transformer, head, projector, weights, str(folder))
    model = LatentRewardModel(
        transformer,
        _tokenizer(folder, tokenizer),
        head,
        prompt_form=metadata.get("prompt_form") or KINDS[kind].default_prompt_form,
        kind=kind,
        num_latents=metadata.get("num_latents") or KINDS[kind].default_num_latents,
        projector=projector,
        frozen=bool(metadata.get("frozen", False)),
    )
    model.classifier.load_state_dict(classifier.state_dict())
    model.backbone_fingerprint, model.commit = metadata.get("backbone_fingerprint"), commit_of(folder)
    check_rows(model.tokenizer, embedding_table(transformer).shape[0], f"the reward model {folder}")
    return model.eval()


def load_to_train_further(
    name_or_folder: str | Path,
    backbone: LatentBackbone,
    head: HeadName = "linear",
    frozen: bool = False,
    dropout: float = 0.0,
) -> LatentRewardModel:
    """A trained reward model of this backbone, ready to be trained further; options as in `LatentRewardModel.from_backbone`.

    Raises:
        UserError: Not a reward model (see `load_reward_model`), that of another backbone, or one with another head.
    """
    model = load_reward_model(name_or_folder, backbone.tokenizer)
    fingerprint = backbone.fingerprint()
    if model.backbone_fingerprint not in (None, fingerprint) or model.hidden_size != backbone.hidden_size:
        raise UserError(
            f"The reward model {name_or_folder} was trained for another backbone: train one that starts from this backbone."
        )
    if model.head_name != head:
        raise UserError(f"The reward model {name_or_folder} has a {model.head_name} head, not {head}: choose the same.")
    model.backbone_fingerprint, model.frozen = fingerprint, frozen
    for part in (model.transformer, model.projector):
        if part is not None:
            part.requires_grad_(not frozen)
    check_packed(model.transformer)
    set_dropout(model, dropout)
    return model


def _tokenizer(folder: Path, given: str | Path | PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    if isinstance(given, PreTrainedTokenizerBase):
        return given
    if given is not None:
        return load_tokenizer(resolve_folder(given))
    if not (folder / "tokenizer.json").exists() and not (folder / "tokenizer_config.json").exists():
        raise UserError(f"{folder} holds no tokenizer: pass tokenizer=, the folder of the backbone it scores.")
    return load_tokenizer(folder)


def _fill(
    transformer: PreTrainedModel, head: HeadName, projector: nn.Module | None, weights: dict[str, Tensor], source: str
) -> Head:
    """Puts the stored weights in their places, before the transformer is compared with its own forward pass; returns the head."""
    classifier = HEADS[head](embedding_table(transformer).shape[1])
    parts: dict[str, nn.Module] = {transformer.base_model_prefix: transformer, "classifier": classifier}
    parts |= {} if projector is None else {"projector": projector}
    places = {f"{prefix}.{key}": value for prefix, part in parts.items() for key, value in part.state_dict().items()}
    check_weights(weights, places, {}, source, f"a {transformer.config.model_type} reward model with a {head} head")
    fill(places, weights)
    return classifier

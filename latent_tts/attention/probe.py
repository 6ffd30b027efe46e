"""Whether a causal LM can carry latent thoughts exactly: its cached passes beside its own plain forward pass, at a few positions.

Any family of transformers, known or not, is run on two short prompts and a few thoughts of two rollouts each, once per
configuration and process, when it is wrapped: by the way it will be used, and as its authors wrote it (eager attention, no cache,
no padding, all positions at once). Where both agree the model is used; where not, it is refused in one sentence.

The prompts are longer than every small window that the configuration names. Of larger ones, `longest_sequence` keeps sequences
shorter than they are, so that nothing is used that was not compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from latent_tts.attention.interface import keep_own_attention, share_attention, shares_attention
from latent_tts.attention.probe_passes import (
    STEPS,
    WAITS,
    RefusedError,
    Sample,
    packed_passes,
    rollout_passes,
    training_passes,
)
from latent_tts.attention.windows import positions_to_compare
from latent_tts.errors import UserError

Found = TypeVar("Found")

_STATES = re.compile("conv|linear|mamba|recurrent")  # in the names of types of layers
_SHORTER = 5  # tokens that the second prompt is shorter
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}  # of a state's norm

_found: dict[tuple[Any, ...], Any] = {}  # sentences where models were refused


def make_exact(model: PreTrainedModel, rows_wait: bool = False) -> None:
    """Lets a model attend in the way in which rollouts of it are exact: the shared one if it can be, else its own.

    Args:
        model: A causal LM, or its base model, with its weights.
        rows_wait: Whether rows are to stop thinking at different steps, as CoLaR's do.

    Raises:
        UserError: Rollouts of it are not exact in either way; says why.
    """
    shared = once("rolled out", model, lambda: _way_of_attention(model, rows_wait), rows_wait)
    (share_attention if shared else keep_own_attention)(model)


def check_training(model: PreTrainedModel) -> None:
    """Checks the differentiable passes that backbones are trained with, on a model that `make_exact` has been given.

    Raises:
        UserError: They do not give what the model's own forward pass gives; says by how much.
    """
    once("trained", model, lambda: _only_way(model, training_passes, "trained as a backbone"))


def check_packed(model: PreTrainedModel) -> None:
    """Checks the packed passes that reward models are trained with, on a model that `make_exact` has been given.

    Raises:
        UserError: They do not give what the model's own forward pass gives; says by how much.
    """
    once("trained as a reward model", model, lambda: _only_way(model, packed_passes, "trained as a reward model"))


# The comparison ---------------------------------------------------------------------------------------------------------------


def once(use: str, model: PreTrainedModel, judge: Callable[[], Found], *more: Any) -> Found:
    """What was found out about models of this class and configuration, from memory where it was found out before.

    Args:
        use: What for.
        judge: Finds it out, in evaluation mode and without gradients; raises `RefusedError` where the model does not serve.
        more: What else the finding depends on.

    Raises:
        UserError: The model does not serve.
    """
    way = shares_attention(model) if use != "rolled out" else None
    key = (use, type(model), model.config.to_json_string(use_diff=False), model.dtype, model.device.type, way, *more)
    if key not in _found:
        try:
            with _undisturbed(model):
                _found[key] = judge()
        except Exception as error:
            reason = str(error) if isinstance(error, RefusedError) else f"cannot be {use} ({_first_line(error)})"
            _found[key] = (
                f"A model of type {model.config.model_type} {reason}; docs/models.md lists families that serve."
            )
    found = _found[key]
    if isinstance(found, str):
        raise UserError(found)
    return cast(Found, found)


@contextmanager
def _undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Evaluates without gradients, and leaves the model's modes and the random state as they were."""
    training = [module for module in model.modules() if module.training]
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.no_grad():
            model.eval()
            yield
    finally:
        for module in training:
            module.training = True


def _way_of_attention(model: PreTrainedModel, rows_wait: bool) -> bool:
    """Whether the shared way is exact (True) or only the model's own (False)."""
    keep_own_attention(model)
    sample = _sample(model, rows_wait)
    try:
        share_attention(model)
        if _error(sample, rollout_passes(model, sample, rows_wait)) <= sample.tolerance:
            return True
    except Exception:  # SpecialAttention or whatever else: the model's own way is left to try
        pass
    keep_own_attention(model)
    _require(model, sample, lambda: rollout_passes(model, sample, rows_wait), "rolled out")
    return False


def _only_way(model: PreTrainedModel, passes: Callable[[PreTrainedModel, Sample], list[Tensor]], use: str) -> bool:
    shared = shares_attention(model)
    try:
        keep_own_attention(model)
        sample = _sample(model, False)
    finally:
        (share_attention if shared else keep_own_attention)(model)
    _require(model, sample, lambda: passes(model, sample), use)
    return shared


def _require(model: PreTrainedModel, sample: Sample, passes: Callable[[], list[Tensor]], use: str) -> None:
    try:
        error = _error(sample, passes())
    except RefusedError:
        raise
    except Exception as cause:
        raise RefusedError(
            f"cannot be {use}: its pass with cached keys and values fails ({_first_line(cause)})"
        ) from cause
    if not error <= sample.tolerance:
        raise RefusedError(
            f"cannot be {use} exactly: its cached passes differ from its own forward pass by {error:.1g}"
        )


def _error(sample: Sample, got: list[Tensor]) -> float:
    """Largest error of a hidden state, as a share of its norm; states in the order of the sample, whole sequences each."""
    wanted = [states for problem in sample.wanted for states in problem]
    return max(_distance(mine, own) for mine, own in zip(got, wanted, strict=True))


def _distance(mine: Tensor, own: Tensor) -> float:
    mine, own = mine.double().cpu(), own.double().cpu()
    return float(((mine - own).norm(dim=-1) / own.norm(dim=-1).clamp(min=1e-30)).nan_to_num(nan=float("inf")).max())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


# The model as its authors wrote it ----------------------------------------------------------------------------------------------


def _sample(model: PreTrainedModel, rows_wait: bool) -> Sample:
    layers = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if getattr(model.base_model, "_is_stateful", False) or any(_STATES.search(str(layer)) for layer in layers):
        raise RefusedError(
            "keeps a recurrent state in place of keys and values, which rollouts of one prompt cannot share"
        )
    longest = max(2, positions_to_compare(model.config) - STEPS)
    ids = _token_ids(model, longest)
    try:
        table: Any = model.get_input_embeddings()
        prompts = [table(ids[:1])[0], table(ids[1:, : max(1, longest - _SHORTER)])[0]]
        alone = [_own_pass(model, inputs_embeds=prompt.unsqueeze(0)) for prompt in prompts]
        by_ids = _own_pass(model, input_ids=ids[:1])
        turn = torch.arange(2 * STEPS, device=ids.device).view(2, STEPS)  # which state each thought repeats
        thoughts = torch.stack([states[turn % len(states)] for states in alone])
        wanted = [
            [_own_sequence(model, prompts[p], thoughts[p, m], rows_wait and m == 1) for m in (0, 1)] for p in (0, 1)
        ]
    except Exception as cause:
        raise RefusedError(f"cannot be fed embeddings in place of tokens ({_first_line(cause)})") from cause
    sample = Sample(prompts, thoughts.to(prompts[0].dtype), wanted, _tolerance(model, prompts[0], alone[0]))
    if not all(bool(states.isfinite().all()) for states in alone):
        raise RefusedError("gives hidden states that are no numbers, with the weights it has")
    if _distance(alone[0], by_ids) > sample.tolerance:
        raise RefusedError("looks up more than an embedding by a token's id, and a thought has no id")
    if (
        max(_distance(states[: len(a)], a) for a, own in zip(alone, wanted, strict=True) for states in own)
        > sample.tolerance
    ):
        raise RefusedError(
            "lets a position see what comes after it, so that thoughts would change what they were made from"
        )
    return sample


def _own_sequence(model: PreTrainedModel, prompt: Tensor, thoughts: Tensor, waits: bool) -> Tensor:
    """Hidden states of a rollout: with thoughts (T, D), one of them left out where the row waits meanwhile."""
    fed = torch.cat([thoughts[:WAITS], thoughts[WAITS + 1 :]]) if waits else thoughts
    return _own_pass(model, inputs_embeds=torch.cat([prompt, fed.to(prompt.dtype)]).unsqueeze(0))


def _own_pass(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    """Hidden states (L, D) of one row."""
    base: Any = model.base_model
    states = base(**inputs, use_cache=False).last_hidden_state[0]
    assert isinstance(states, Tensor)
    return states


def _tolerance(model: PreTrainedModel, prompt: Tensor, states: Tensor) -> float:
    """What rounding alone may do; in half precision measured too, since there it can send a token to another expert."""
    tolerance = _TOLERANCE.get(model.dtype, 1e-4)
    if model.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        tolerance = max(tolerance, 1e-2)
    if torch.finfo(model.dtype).bits > 16:
        return tolerance
    moved = prompt + prompt * torch.finfo(model.dtype).eps * torch.ones_like(prompt).cumsum(0).remainder(2)
    return max(tolerance, 4 * _distance(_own_pass(model, inputs_embeds=moved.unsqueeze(0)), states))


def _token_ids(model: PreTrainedModel, length: int) -> Tensor:
    """Two rows of ordinary tokens, (2, length), of a generator of their own."""
    table: Any = model.get_input_embeddings()
    config = model.config.get_text_config()
    names = ("pad", "bos", "eos", "sep", "cls", "image", "audio")
    named = [getattr(config, f"{name}_token_id", None) for name in names]
    special = {token for value in named for token in (value if isinstance(value, list | tuple) else [value])}
    size = min(table.weight.shape[0], getattr(config, "vocab_size", None) or table.weight.shape[0])
    drawn = torch.randint(size, (2 * length,), generator=torch.Generator().manual_seed(0)).tolist()
    ordinary = [next((t % size for t in range(token, token + 8) if t % size not in special), token) for token in drawn]
    return torch.tensor(ordinary, device=model.device).view(2, length)

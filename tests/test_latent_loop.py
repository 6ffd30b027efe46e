"""What makes the latent loop fit for an accelerator: no step waits for a value from the device, and shapes stay.

The meta device stands in for an accelerator: its tensors hold no values, so what reads one raises an error, and so does
an operator between it and the CPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from latent_tts.acceleration.kernels import library
from latent_tts.attention import shared_prefix as cache
from latent_tts.engine.engine import RolloutEngine
from latent_tts.sampling import AdditiveGaussianNoise, MonteCarloDropout

pytestmark = pytest.mark.slow

SAMPLERS = {
    "agn": AdditiveGaussianNoise(sigma=0.3),
    "dropout-latent": MonteCarloDropout(p=0.2, scope="latent"),
    "dropout-prompt": MonteCarloDropout(p=0.1, scope="prompt+latent"),
}
WAITING = {  # operators whose result, or its shape, the host has to learn from the device
    "_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
}  # fmt: skip


class Recorder(TorchDispatchMode):
    """Names of all operators that are run, and the shapes that matrix products multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.products: list[tuple[torch.Size, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").split(".")[0]
        self.names.append(name)
        if name in ("mm", "bmm", "addmm", "baddbmm", "linear", "matmul"):
            self.products.append(tuple(arg.shape for arg in args if isinstance(arg, torch.Tensor)))
        return func(*args, **(kwargs or {}))


class Uploads(TorchFunctionMode):
    """Calls that bring values of the host, numbers or a tensor, to the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_meta:
            from_host = func in (torch.tensor, torch.as_tensor) and not (
                isinstance(args[0], torch.Tensor) and args[0].is_meta
            )
            if from_host or (
                func in (torch.Tensor.to, torch.Tensor.copy_) and args[0 if func == torch.Tensor.to else 1].is_cpu
            ):
                self.calls.append(func)
        return out


def thoughts(backbone, sampler, questions, count: int) -> list[Recorder]:
    """What is run in each of so many thoughts after the first."""
    engine = RolloutEngine(backbone, sampler, max_answer_tokens=3)
    state = engine.expand(engine.start(questions[:3]), num_children=2)
    recorders = []
    for _ in range(count):
        with Recorder() as recorder:
            state = engine.expand(state)
        recorders.append(recorder)
    return recorders


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("kind", ["coconut", "codi", "colar"])
@pytest.mark.parametrize("layout", ["gpt2", "llama"])
def test_no_thought_waits_for_a_value(kind, layout, sampler, tiny_backbone, questions):
    for recorder in thoughts(tiny_backbone(kind, layout, num_latents=5), sampler, questions, 3):
        assert recorder.products
        assert not WAITING.intersection(recorder.names)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("kind", ["coconut", "codi", "colar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_without_values_can_think(kind, dtype, sampler, tiny_backbone, questions):
    """Nothing is read from the device and nothing sent to it, from the second thought to the answer's first token."""
    for layout in ("gpt2", "llama"):
        backbone = tiny_backbone(kind, layout, num_latents=5).requires_grad_(False).to(dtype).to("meta")
        engine = RolloutEngine(backbone, sampler, max_answer_tokens=3)
        state = engine.expand(engine.start(questions), num_children=4)  # prompts are sent here
        with torch.inference_mode(), Uploads() as uploads:
            state = engine.expand(engine.expand(state))
            ended = engine.decoder.end_thought(state)
            tokens = backbone.most_likely(ended.hidden)
        assert not uploads.calls
        assert state.latents.is_meta and tokens.shape == (4 * len(questions),)


def test_an_upload_and_a_mix_of_devices_are_seen():
    with Uploads() as uploads:
        torch.tensor([1, 2], device="meta")
        torch.ones(2).to("meta")
        torch.ones(2, device="meta").copy_(torch.ones(2))
        torch.ones(2, device="meta") + 1
    assert len(uploads.calls) == 3
    for mistake in (lambda one: one + torch.ones(2), lambda one: bool(one.all()), lambda one: one[one > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            mistake(torch.ones(2, device="meta"))


def test_a_value_that_is_waited_for_is_seen():
    with Recorder() as recorder:
        assert bool(torch.ones(2).all())
        torch.ones(2)[torch.tensor([True, False])]
    assert {"_local_scalar_dense", "nonzero"} & set(recorder.names) or "is_nonzero" in recorder.names


@pytest.mark.parametrize("kind", ["coconut", "codi", "colar"])
def test_whole_buffers_keep_every_product_in_shape_from_thought_to_thought(kind, monkeypatch, tiny_backbone, questions):
    monkeypatch.setattr(library, "kernels", lambda: None)  # as on accelerators, whose products are torch's
    monkeypatch.setattr(cache, "prefers_whole_buffers", lambda keys: True)
    first, *rest = thoughts(tiny_backbone(kind, "llama", num_latents=5), SAMPLERS["agn"], questions, 3)
    assert all(recorder.products == first.products for recorder in rest)
    monkeypatch.setattr(cache, "prefers_whole_buffers", lambda keys: False)
    first, *rest = thoughts(tiny_backbone(kind, "llama", num_latents=5), SAMPLERS["agn"], questions, 3)
    assert any(recorder.products != first.products for recorder in rest)

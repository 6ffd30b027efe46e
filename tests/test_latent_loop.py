"""What makes the latent loop fit for an accelerator: no step waits for a value from the device, and shapes stay."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latent_tts import cache
from latent_tts.rollout import RolloutEngine
from latent_tts.sampling import AdditiveGaussianNoise, MonteCarloDropout

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


def test_a_value_that_is_waited_for_is_seen():
    with Recorder() as recorder:
        assert bool(torch.ones(2).all())
        torch.ones(2)[torch.tensor([True, False])]
    assert {"_local_scalar_dense", "nonzero"} & set(recorder.names) or "is_nonzero" in recorder.names


@pytest.mark.parametrize("kind", ["coconut", "codi", "colar"])
def test_whole_buffers_keep_every_product_in_shape_from_thought_to_thought(kind, monkeypatch, tiny_backbone, questions):
    monkeypatch.setattr(cache, "prefers_whole_buffers", lambda keys: True)  # as on accelerators
    first, *rest = thoughts(tiny_backbone(kind, "llama", num_latents=5), SAMPLERS["agn"], questions, 3)
    assert all(recorder.products == first.products for recorder in rest)
    monkeypatch.setattr(cache, "prefers_whole_buffers", lambda keys: False)
    first, *rest = thoughts(tiny_backbone(kind, "llama", num_latents=5), SAMPLERS["agn"], questions, 3)
    assert any(recorder.products != first.products for recorder in rest)

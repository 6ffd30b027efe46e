"""What every sampler of the registry promises, and that thoughts are drawn from the density that they are weighed by."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from scipy import stats

import latent_tts.sampling
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.sampling import (
    SAMPLERS,
    AdditiveGaussianNoise,
    MonteCarloDropout,
    NativeGaussian,
    PromptSharing,
    RelativeGaussianNoise,
    RolloutDropout,
    SingularValuePerturbation,
)
from latent_tts.seeding import fold_in, problem_keys

WITH_DENSITY = {
    "native": NativeGaussian(0.7),
    "fixed": AdditiveGaussianNoise(0.2),
    "relative": RelativeGaussianNoise(0.3),
}


@pytest.fixture
def colar(tiny_backbone):
    return tiny_backbone("colar", "llama", latent_log_std=True, latent_embedding_std=0.5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_found_by_its_name_and_says_what_it_is(name):
    """Its class path in configurations, settings from which it can be made again, and a label with all parameters."""
    assert getattr(latent_tts.sampling, name) is SAMPLERS[name]
    sampler = SAMPLERS[name]()
    options = dict(sampler.settings())
    assert options.pop("name") == name and set(options) == set(inspect.signature(SAMPLERS[name]).parameters)
    assert SAMPLERS[name](**options).settings() == sampler.settings()
    parameters = [f"{value:g}" if isinstance(value, float) else value for value in options.values()]
    assert all(value in sampler.label for value in parameters) and sampler.label.isascii()


def test_every_class_of_the_room_is_registered():
    classes = [c for c in vars(latent_tts.sampling).values() if inspect.isclass(c)]
    samplers = {c for c in classes if issubclass(c, latent_tts.sampling.Sampler)} - {latent_tts.sampling.Sampler}
    assert samplers == set(SAMPLERS.values())


@pytest.mark.parametrize("sampler", WITH_DENSITY.values(), ids=WITH_DENSITY)
def test_log_densities_by_hand(colar, sampler):
    """log N(h; m, s^2) = -((h - m) / s)^2 / 2 - log s - log sqrt(2 pi), with m and s from the head's own layers."""
    generator = torch.Generator().manual_seed(0)
    hidden, latents = torch.randn(5, 32, generator=generator), torch.randn(5, 32, generator=generator)
    inner = colar.lt_head.fc(hidden)
    mean = colar.lt_head.mean(inner) * 0.5
    std = {
        "native": 0.7 * colar.lt_head.log_std(inner).exp() * 0.5,
        "fixed": torch.tensor(0.2),
        "relative": 0.3 * mean.norm(dim=1, keepdim=True) / 32**0.5,
    }[next(name for name, one in WITH_DENSITY.items() if one is sampler)]
    expected = -(((latents - mean) / std) ** 2) / 2 - std.log() - math.log(math.sqrt(2 * math.pi))
    torch.testing.assert_close(sampler.log_prob(colar, hidden, latents), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("sampler", WITH_DENSITY.values(), ids=WITH_DENSITY)
def test_thoughts_are_drawn_from_the_density_they_are_weighed_by(colar, sampler):
    """By its cumulative distribution 20,000 x 32 draws become uniform (Kolmogorov-Smirnov)."""
    hidden = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)).expand(20_000, -1)
    keys = fold_in(problem_keys(0, ["a"]), torch.arange(20_000))
    drawn = sampler.next_latent(colar, hidden, keys, torch.ones_like(keys))
    quantiles = sampler.distribution(colar, hidden).cdf(drawn)
    assert stats.kstest(quantiles.flatten().double().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    "sampler",
    [
        SAMPLERS["Deterministic"](),
        MonteCarloDropout(),
        RolloutDropout(),
        SingularValuePerturbation(),
        NativeGaussian(0.0),
        AdditiveGaussianNoise(0.0),
        RelativeGaussianNoise(0.0),
    ],
    ids=str,
)
def test_thoughts_without_a_density_are_refused(colar, sampler):
    with pytest.raises(UserError, match="gives latent thoughts no density"):
        sampler.log_prob(colar, torch.zeros(1, 32), torch.zeros(1, 32))


@torch.no_grad()
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("amount", [None, 0.0])
def test_a_sampler_is_called_greedy_where_its_rollouts_are(name, amount, colar):
    """Each as it is, and with none of its noise where it can be had without."""
    option = {"AdditiveGaussianNoise": "sigma", "RelativeGaussianNoise": "ratio", "NativeGaussian": "temperature"}
    option |= {"SingularValuePerturbation": "sigma"}
    without = amount is not None and name in option
    sampler = SAMPLERS[name](**({option[name]: amount} if without else {}))
    latents = RolloutEngine(colar, sampler, 1).rollout(["5 + 6?"], num_rollouts=3).latents
    assert sampler.is_greedy == torch.allclose(latents, latents[:, :1].expand_as(latents), atol=1e-4)
    assert sampler.is_greedy == (without or name == "Deterministic")


@pytest.mark.parametrize(
    ("sharing", "shared", "random_pass"),
    [(PromptSharing.ALL, 7, False), (PromptSharing.ALL_BUT_LAST, 6, True), (PromptSharing.NONE, 0, True)],
)
def test_positions_of_a_prompt_of_seven_tokens_that_rollouts_share(sharing, shared, random_pass):
    assert sharing.num_shared(7) == shared and sharing.random_pass == random_pass


@torch.no_grad()
def test_relative_noise_is_as_large_a_share_of_every_latent():
    """20,000 latents of lengths from 0.01 to 100: mean squared noise over squared length is ratio^2, within 5 standard errors."""
    latents = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    latents = latents * torch.logspace(-2, 2, 20_000).unsqueeze(1)
    keys = fold_in(problem_keys(0, ["a"]), torch.arange(20_000))
    noise = RelativeGaussianNoise(0.4).perturb(latents, keys, torch.ones_like(keys)) - latents
    shares = (noise.norm(dim=1) / latents.norm(dim=1)).square().double()
    assert abs(shares.mean() - 0.16) < 5 * shares.std() / 20_000**0.5


def test_masks_of_a_rollout_are_the_same_at_every_position_and_others_for_another_rollout(colar):
    """Seen from outside: what the sites of a pass over one hidden state, three times in a row, let through."""
    sampler = RolloutDropout(0.5)
    keys = fold_in(problem_keys(0, ["a"]), torch.arange(4))
    seen = []
    with torch.no_grad(), sampler.attached(colar) as noise:
        noise.switch("latent", keys, torch.arange(3).expand(4, -1))
        for layer in sampler.layers(colar):
            out = layer(torch.ones(4, 3, layer.weight.shape[1]))  # type: ignore[arg-type, index]
            seen.append(out == 0)
            assert torch.equal(out[:, :1].expand_as(out), out) and 0.2 < seen[-1].float().mean() < 0.8
    assert not torch.equal(seen[0][0], seen[0][1]) and not torch.equal(seen[0][0], seen[2][0])

"""What every sampler of the registry promises, and that thoughts are drawn from the density that they are weighed by."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from scipy import stats

import latent_tts.sampling
from latent_tts.errors import UserError
from latent_tts.sampling import SAMPLERS, AdditiveGaussianNoise, MonteCarloDropout, NativeGaussian, PromptSharing
from latent_tts.seeding import fold_in, problem_keys

WITH_DENSITY = {"native": NativeGaussian(0.7), "fixed": AdditiveGaussianNoise(0.2)}


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
    std = 0.7 * colar.lt_head.log_std(inner).exp() * 0.5 if sampler is WITH_DENSITY["native"] else torch.tensor(0.2)
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
    [SAMPLERS["Deterministic"](), MonteCarloDropout(), NativeGaussian(0.0), AdditiveGaussianNoise(0.0)],
    ids=str,
)
def test_thoughts_without_a_density_are_refused(colar, sampler):
    with pytest.raises(UserError, match="gives latent thoughts no density"):
        sampler.log_prob(colar, torch.zeros(1, 32), torch.zeros(1, 32))


@pytest.mark.parametrize(
    ("sharing", "shared", "random_pass"),
    [(PromptSharing.ALL, 7, False), (PromptSharing.ALL_BUT_LAST, 6, True), (PromptSharing.NONE, 0, True)],
)
def test_positions_of_a_prompt_of_seven_tokens_that_rollouts_share(sharing, shared, random_pass):
    assert sharing.num_shared(7) == shared and sharing.random_pass == random_pass

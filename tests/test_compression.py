"""CoLaR's examples and losses equal a direct computation that takes one row, and one prefix of it, at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from latent_tts.backbones.colar import Colar
from latent_tts.backbones.loading import load_backbone
from latent_tts.errors import UserError
from latent_tts.training.colar import at_speed, colar_losses, compress, compression_factor, latent_losses
from tests.training import addition

FORM = "Q: {question} (speed {speed})###"


@pytest.fixture(params=["gpt2", "llama"])
def backbone(request, tiny_backbone) -> Colar:
    return tiny_backbone("colar", request.param, latent_log_std=True, latent_embedding_std=0.15)


def examples_at(backbone, factor, count=4):
    return compress([addition(i) for i in range(count)], factor, backbone, FORM, key="0/0")


def slow_losses(backbone, example, factor, form, entropy_weight):
    """Feeds one example embedding by embedding; every label is predicted by a pass over the prefix before it."""
    table = backbone.model.get_input_embeddings().weight
    fed = [table[token] for token in example.prompt_ids]
    tokens, latents = [], []

    def last_hidden():
        return backbone.model.base_model(inputs_embeds=torch.stack(fed).unsqueeze(0)).last_hidden_state[0, -1]

    def token_loss(hidden, label):
        return -backbone.model.get_output_embeddings()(hidden).log_softmax(-1)[label]

    for group, drawn in zip(example.groups, example.drawn_ids, strict=True):
        merged = sum(table[token] for token in group) / math.sqrt(factor)
        hidden = last_hidden()
        tokens.append(token_loss(hidden, drawn))
        mean, log_std = backbone.lt_head.distribution(hidden)
        target, std, dimensions = merged.detach() / 0.15, log_std.exp(), len(mean)
        if form == "mse":
            latents.append(((mean - target) ** 2).sum() / dimensions)
        elif form == "nll":
            constant = 0.5 * math.log(2 * math.pi)
            latents.append(-(Normal(mean, std).log_prob(target) + constant).sum() / dimensions)
        elif form == "mse_nll":
            fixed = -(Normal(mean.detach(), std).log_prob(target) + 0.5 * math.log(2 * math.pi))
            latents.append(((mean - target) ** 2 + fixed).sum() / dimensions)
        else:
            latents.append(((mean - target) ** 2 + std**2 - entropy_weight * std.log()).sum() / dimensions)
        fed.append(merged)
    tail = []
    for token in example.tail_ids:
        tail.append(token_loss(last_hidden(), token))
        fed.append(table[token])
    return tokens, tail, latents


def gradients(backbone, loss):
    backbone.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None])


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1, 3, 7])
@pytest.mark.parametrize("form", ["mse", "nll", "soft_mse", "mse_nll"])
def test_losses_and_gradients_equal_feeding_one_embedding_at_a_time(backbone, factor, form):
    """Rows of different lengths, with last groups that are shorter than the others."""
    examples = examples_at(backbone, factor)
    assert factor == 1 or any(len(example.groups[-1]) < factor for example in examples)
    losses = colar_losses(backbone, examples, factor, form, entropy_weight=0.2)
    slow = [slow_losses(backbone, example, factor, form, 0.2) for example in examples]
    tokens = [loss for row in slow for loss in row[0]] + [loss for row in slow for loss in row[1]]
    latents = [loss for row in slow for loss in row[2]]
    torch.testing.assert_close(losses.tokens, torch.stack(tokens), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(losses.latents, torch.stack(latents), atol=1e-4, rtol=1e-4)
    expected = gradients(backbone, sum(tokens) + 3 * sum(latents))
    actual = gradients(backbone, losses.tokens.sum() + 3 * losses.latents.sum())
    torch.testing.assert_close(actual, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def test_padding_and_other_rows_do_not_enter_a_row(backbone):
    examples = examples_at(backbone, 2, count=6)
    together = colar_losses(backbone, examples, 2, "nll")
    alone = [colar_losses(backbone, [example], 2, "nll") for example in examples]
    drawn = [losses.tokens[: len(e.groups)] for losses, e in zip(alone, examples, strict=True)]
    tails = [losses.tokens[len(e.groups) :] for losses, e in zip(alone, examples, strict=True)]
    torch.testing.assert_close(together.tokens, torch.cat(drawn + tails), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.latents, torch.cat([a.latents for a in alone]), atol=1e-4, rtol=1e-4)


def test_no_gradient_flows_into_the_targets(tiny_backbone):
    """A token of the last group of a row is fed to nothing that a latent loss reads: as a target alone it has no gradient."""
    backbone = tiny_backbone("colar", "llama")
    (example,) = compress([addition(3)], 100, backbone, FORM, key="")
    assert len(example.groups) == 1
    colar_losses(backbone, [example], 100).latents.sum().backward()
    gradient = backbone.model.get_input_embeddings().weight.grad
    only_in_the_steps = set(example.groups[0]) - set(example.prompt_ids)
    assert only_in_the_steps and not gradient[list(only_in_the_steps)].any()
    assert gradient[example.prompt_ids].abs().sum() > 0


def test_examples_are_laid_out_as_published(tiny_backbone):
    """12 characters of a byte-level step, in groups of 5; the prompt has the factor and ends in the token ###."""
    backbone = tiny_backbone("colar", "llama")
    (example,) = compress([addition(8)], 5, backbone, Colar.speed_form, key="")
    decode = backbone.tokenizer.decode
    question = addition(8).question
    assert decode(example.prompt_ids) == f"Question: {question} Let's think step by step:(Thinking speed: 5)###"
    assert example.prompt_ids[-1] == backbone.end_of_thought_id
    assert [decode(group) for group in example.groups] == ["<<1+4", "=5>>\n", "<<5+1", "=6>>\n"]
    assert all(drawn in group for drawn, group in zip(example.drawn_ids, example.groups, strict=True))
    assert decode(example.tail_ids) == "###Answer:6<|endoftext|>"
    assert at_speed(Colar.speed_form, 2) == Colar.default_prompt_form


def test_drawn_tokens_are_a_function_of_key_and_question(tiny_backbone):
    backbone = tiny_backbone("colar", "llama")

    def drawn(numbers, key):
        return [example.drawn_ids for example in compress([addition(i) for i in numbers], 5, backbone, FORM, key)]

    assert drawn([1, 2, 3], "0/1") == drawn([3, 2, 1], "0/1")[::-1]
    assert drawn([1, 2, 3], "0/1") != drawn([1, 2, 3], "0/2")


def test_every_token_of_a_group_is_drawn_equally_often(tiny_backbone):
    """300 draws from the three different tokens of `+4=`: each within 4 deviations of 100."""
    backbone = tiny_backbone("colar", "llama")
    counts = torch.zeros(3)
    for key in range(300):
        (example,) = compress([addition(8)], 3, backbone, FORM, str(key))
        assert backbone.tokenizer.decode(example.groups[1]) == "+4="
        counts[example.groups[1].index(example.drawn_ids[1])] += 1
    assert (counts - 100).abs().max() < 4 * math.sqrt(300 * 1 / 3 * 2 / 3)


def test_factors_are_a_function_of_seed_epoch_and_batch_and_all_occur():
    factors = [compression_factor([1, 2, 3, 4, 5], 0, 0, batch) for batch in range(500)]
    assert factors == [compression_factor([1, 2, 3, 4, 5], 0, 0, batch) for batch in range(500)]
    assert factors != [compression_factor([1, 2, 3, 4, 5], 1, 0, batch) for batch in range(500)]
    assert factors != [compression_factor([1, 2, 3, 4, 5], 0, 1, batch) for batch in range(500)]
    assert all(70 < factors.count(factor) < 130 for factor in (1, 2, 3, 4, 5))


def test_merged_embeddings_keep_the_variance():
    """The sum of r independent embeddings of variance v has variance r v; divided by sqrt(r), v."""
    from latent_tts.training.colar import merge

    class Table:
        device = "cpu"
        table = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))

        def embed(self, ids):
            return self.table[ids]

    groups = torch.randperm(1000, generator=torch.Generator().manual_seed(1)).view(250, 4).tolist()
    assert merge(Table(), groups, 4).var() == pytest.approx(1.0, abs=0.05)  # type: ignore[arg-type]


def test_soft_mse_is_the_expected_error_of_draws_less_their_entropy():
    """Against 200,000 draws and torch's entropy of the Gaussian, whose constant is left out."""
    mean, log_std, target = torch.tensor([[0.3]]), torch.tensor([[-0.7]]), torch.tensor([[1.0]])
    draws = mean + log_std.exp() * torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    entropy = Normal(mean, log_std.exp()).entropy() - 0.5 * math.log(2 * math.pi * math.e)
    expected = (draws - target).square().mean() - 0.4 * entropy
    loss = latent_losses(mean, log_std, target, "soft_mse", entropy_weight=0.4)
    torch.testing.assert_close(loss, expected[0], atol=0.01, rtol=0)


# The head's optional part ---------------------------------------------------------------------------------------------


def test_heads_with_and_without_a_deviation_load_strictly_and_only_as_they_are(tiny_backbone, tmp_path):
    from safetensors.torch import load_file, save_file

    plain, native = tiny_backbone("colar", "llama"), tiny_backbone("colar", "llama", latent_log_std=True)
    plain.save_pretrained(tmp_path / "plain")
    native.save_pretrained(tmp_path / "native")
    assert "latent_log_std" not in (tmp_path / "plain" / "config.json").read_text()
    assert load_backbone(tmp_path / "plain").lt_head.log_std is None
    assert load_backbone(tmp_path / "native").fingerprint() == native.fingerprint()
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in ("plain", "native")}
    for folder, others, part in (
        ("plain", "native", r"unexpected: lt_head\.log_std\.bias, lt_head\.log_std\.weight"),
        ("native", "plain", r"missing: lt_head\.log_std\.weight, lt_head\.log_std\.bias"),
    ):
        save_file(weights[others], tmp_path / folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=part):
            load_backbone(tmp_path / folder)


def test_a_causal_lm_becomes_a_colar_with_the_deviation_of_its_own_embeddings(tiny_causal_lm, tiny_tokenizer):
    tokenizer = tiny_tokenizer(())
    model = tiny_causal_lm("llama", len(tokenizer), initializer_range=0.37)
    table = model.get_input_embeddings().weight.detach().clone()
    backbone = Colar.from_causal_lm(model, tokenizer, num_latents=5)
    assert backbone.latent_embedding_std == pytest.approx(float(table.std()))
    assert backbone.latent_embedding_std == pytest.approx(0.37, abs=0.02)
    assert backbone.extra_config()["latent_embedding_std"] == backbone.latent_embedding_std


def test_the_end_of_thought_is_a_token_of_its_own_where_the_vocabulary_merges_it(tiny_causal_lm):
    """A tokenizer that knows both `###` and `)###`: left alone, it would never end a prompt in `###`."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<e>", "#", ")", "##", "###", ")###"])}
    merges = [("#", "#"), ("##", "#"), (")", "###")]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab, merges)), eos_token="<e>")
    assert tokenizer(")###")["input_ids"] == [5]
    backbone = Colar.from_causal_lm(tiny_causal_lm("llama", len(tokenizer)), tokenizer)
    assert backbone.tokenizer(")###")["input_ids"] == [2, 4]
    assert backbone.end_of_thought_id == 4 and backbone.hidden_size == 32

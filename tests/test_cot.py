"""Written reasoning: the loss is that of the whole text, and evaluation reads the chain that the model itself would write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from commands.writer import main as write_writer
from latent_tts.answers import parse_answer
from latent_tts.backbones.cot import Cot
from latent_tts.backbones.loading import load_backbone
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.problems import problem_id_from_question
from latent_tts.sampling import AdditiveGaussianNoise, AnswerSampler, Deterministic, MonteCarloDropout
from latent_tts.sampling.answer_sampler import _ANSWER_SALT
from latent_tts.seeding import fold_in, problem_keys, uniform
from lightning_modules.chain_of_thought_module import ChainOfThoughtModule
from tests.conftest import QUESTIONS
from tests.naive import drawn_token
from tests.training import addition, make_data, make_trainer


@pytest.fixture(params=["gpt2", "llama"])
def plain(request, tiny_causal_lm, tiny_tokenizer, tmp_path):
    """The folder of a causal LM as Hugging Face writes it, without any special token of ours."""
    tokenizer = tiny_tokenizer(())
    tiny_causal_lm(request.param, len(tokenizer)).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def written_by_hand(backbone, text, limit):
    """Greedy decoding of a text, the whole sequence again for every token."""
    ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    written: list[Any] = []
    while len(written) < limit and (not written or written[-1] != backbone.eos_token_id):
        written.append(int(backbone.model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return written


@pytest.mark.parametrize("form", ["{question}\n", "Q: {question} A:"])
def test_greedy_chains_equal_decoding_by_hand(plain, form):
    loaded = load_backbone(plain, kind="cot")
    backbone = Cot(loaded.model, loaded.tokenizer, prompt_form=form)
    rollouts = RolloutEngine(backbone, max_answer_tokens=8).rollout(QUESTIONS, num_rollouts=1)
    for i, question in enumerate(QUESTIONS):
        expected = written_by_hand(backbone, form.replace("{question}", question), 8)
        assert rollouts.answer_ids[i, 0, : len(expected)].tolist() == expected
        prompt = len(backbone.tokenizer(form.replace("{question}", question), add_special_tokens=False)["input_ids"])
        assert rollouts.token_steps[i] == prompt + len(expected) - 1 or rollouts.token_steps[i] == prompt + len(
            expected
        )
    assert rollouts.latents.shape == (len(QUESTIONS), 1, 0, 32)


def test_without_thoughts_noise_changes_nothing_and_dropout_of_the_writing_does(plain):
    backbone = load_backbone(plain, kind="cot")
    greedy = RolloutEngine(backbone, max_answer_tokens=8).rollout(QUESTIONS, num_rollouts=1).texts
    noisy = RolloutEngine(backbone, AdditiveGaussianNoise(3.0), 8).rollout(QUESTIONS, num_rollouts=2).texts
    assert noisy == [texts * 2 for texts in greedy]
    for scope in ("latent", "prompt+latent", "prompt+latent+answer"):
        sampler = MonteCarloDropout(0.4, scope=scope)
        texts = RolloutEngine(backbone, sampler, 8).rollout(QUESTIONS, num_rollouts=2).texts
        assert texts == RolloutEngine(backbone, sampler, 8).rollout(QUESTIONS, num_rollouts=2).texts
        assert (texts == noisy) == (scope == "latent")


@torch.no_grad()
def test_steps_and_answer_of_a_chain_are_drawn_by_ordinary_sampling(plain):
    """Token by token by hand, the whole text again each time; the prompt is encoded once, and chains differ."""
    backbone, drawing = load_backbone(plain, kind="cot"), AnswerSampler(temperature=0.9, top_p=0.95)
    rollouts = RolloutEngine(backbone, Deterministic(), 6, drawing).rollout(QUESTIONS, num_rollouts=3, seed=4)
    for i, question in enumerate(QUESTIONS):
        for n in range(3):
            key = fold_in(problem_keys(4, [problem_id_from_question(question)]), n)
            ids: list[int] = backbone.tokenizer(f"{question}\n", add_special_tokens=False)["input_ids"]
            written: list[int] = []
            while len(written) < 6 and written[-1:] != [backbone.eos_token_id]:
                logits = backbone.model(torch.tensor([ids + written])).logits[0, -1]
                draw = float(uniform(fold_in(fold_in(key, _ANSWER_SALT), len(written)), ()))
                written.append(drawn_token(logits, drawing, draw))
            assert rollouts.answer_ids[i, n, : len(written)].tolist() == written
    assert any(len(set(texts)) > 1 for texts in rollouts.texts)
    prompts = torch.tensor([len(prompt) for prompt in backbone.encode_prompts(QUESTIONS)])
    assert torch.equal(rollouts.shared_steps, prompts)


def test_loss_is_the_mean_over_the_tokens_of_steps_and_answers(plain):
    module = ChainOfThoughtModule(str(plain), prompt_form="Q: {question} A:", answer_form="The answer is: {answer}")
    module.eval()
    examples, losses = [addition(i) for i in range(4)], []
    for example in examples:
        prompt = f"Q: {example.question} A:"
        text = "".join(f"{step}\n" for step in example.steps) + f"The answer is: {example.answer}"
        tokenizer = module.backbone.tokenizer
        prompt_ids, ids = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, text))
        ids = [*ids, module.backbone.eos_token_id]
        logits = module.backbone.model(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
        losses.append(cross_entropy(logits, torch.tensor(ids), reduction="none"))
    found = module.losses(examples)
    torch.testing.assert_close(found, torch.cat(losses), atol=1e-4, rtol=1e-4)


def test_a_trained_model_is_saved_as_what_it_is_and_writes_the_same(plain, tmp_path):
    module = ChainOfThoughtModule(str(plain), prompt_form="{question} =>", global_batch_size=8, max_answer_tokens=8)
    make_trainer(max_epochs=2).fit(module, make_data(tmp_path, 8))
    module.backbone.save_pretrained(tmp_path / "trained")
    loaded = load_backbone(tmp_path / "trained")
    assert (loaded.kind, loaded.num_latents, loaded.prompt_form) == ("cot", 0, "{question} =>")
    texts = [texts[0] for texts in RolloutEngine(loaded, max_answer_tokens=8).rollout(QUESTIONS, 1).texts]
    assert texts == module.eval().generate(QUESTIONS)


def test_the_answer_of_a_chain_is_what_stands_behind_its_last_marker():
    assert parse_answer("<<3+4=7>>\n<<7*2=14>>\n### 14") == 14
    assert parse_answer("<<3+4=7>>\nThe answer is: 7") == 7


def test_a_form_without_text_after_the_question_is_refused(plain):
    with pytest.raises(UserError, match="some text"):
        ChainOfThoughtModule(str(plain), prompt_form="Question: {question}")


def test_written_reasoning_has_no_latents(plain):
    engine = RolloutEngine(load_backbone(plain, kind="cot", num_latents=2))
    with pytest.raises(UserError, match="no latent thoughts"):
        engine.rollout(QUESTIONS, num_rollouts=1)


def test_a_latent_checkpoint_is_no_written_one(tiny_backbone, tmp_path):
    tiny_backbone("codi").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a codi checkpoint, not cot"):
        load_backbone(tmp_path, kind="cot")


def test_the_writer_of_a_codi_writes_what_its_causal_lm_does(tiny_backbone, tmp_path):
    latent = tiny_backbone("codi")
    latent.save_pretrained(tmp_path / "codi")
    form = "{question}\n<|start-latent|><|end-latent|>"
    write_writer(str(tmp_path / "codi"), tmp_path / "writer", form)
    here = RolloutEngine(Cot(latent.model, latent.tokenizer, prompt_form=form), max_answer_tokens=8)
    there = RolloutEngine(load_backbone(str(tmp_path / "writer")), max_answer_tokens=8)
    assert there.backbone.kind == "cot"
    assert there.rollout(QUESTIONS, num_rollouts=1).texts == here.rollout(QUESTIONS, num_rollouts=1).texts


@pytest.mark.parametrize("option", ["step_form", "answer_form"])
def test_forms_without_their_field_are_refused(plain, option):
    with pytest.raises(UserError, match="must hold"):
        ChainOfThoughtModule(str(plain), **{option: "nothing"})  # type: ignore[arg-type]

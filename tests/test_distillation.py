"""CODI's losses equal the definition, computed one example at a time without cache and padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample
from latent_tts.training.codi import (
    Distillation,
    DistillationForms,
    Lesson,
    build_lessons,
    collate_lessons,
    distillation_losses,
    state_distance,
)
from tests.training import addition

pytestmark = pytest.mark.slow

EXAMPLES = [addition(i) for i in range(5)]
FORMS = DistillationForms(teacher_prompt="{question} Steps:\n")


@pytest.fixture(params=["gpt2", "llama"])
def backbone(request, tiny_backbone):
    return tiny_backbone("codi", request.param, num_latents=3)


def batched(backbone, examples, forms=FORMS, **options):
    lessons = build_lessons(backbone, examples, forms)
    losses = distillation_losses(backbone, collate_lessons(lessons, 3, backbone.pad_token_id), **options)
    return torch.stack([losses.student, losses.teacher, losses.distillation], dim=1)  # (B, 3)


def ids_of(backbone, text):
    return backbone.tokenizer(text, add_special_tokens=False)["input_ids"]


def written_out(backbone, embeds, answer_ids, num_label_ids):
    """Forward of a whole sequence that ends in `answer_ids`: cross-entropy of its last ids, states that predict the number."""
    output = backbone.model(inputs_embeds=embeds, output_hidden_states=True)
    labels = torch.tensor(num_label_ids)
    logits = output.logits[0, -len(labels) - 1 : -1]
    number = embeds.shape[1] - len(answer_ids)
    return cross_entropy(logits, labels), [states[0, number - 1] for states in output.hidden_states]


def naive(backbone, example, first_layer=0):
    """The definition: latents by a pass over the whole sequence each; no cache, no padding, no other example."""
    embed = lambda ids: backbone.embed(torch.tensor([ids]))  # noqa: E731
    number = [*ids_of(backbone, " " + example.answer), backbone.eos_token_id]
    words = ids_of(backbone, "The answer is:")

    student = embed(ids_of(backbone, example.question) + ids_of(backbone, "<|start-latent|>"))
    for _ in range(3):
        hidden = backbone.model.base_model(inputs_embeds=student).last_hidden_state[:, -1:]
        student = torch.cat([student, backbone.projector(hidden)], dim=1)
    student = torch.cat([student, embed([backbone.end_of_thought_id, *words, *number])], dim=1)
    # The tokenizer of these tests has single bytes, so the blank before the number is a token: its last one predicts the number.
    student_loss, student_states = written_out(backbone, student, number[1:], [*words, *number])

    steps = [token for step in example.steps for token in ids_of(backbone, step + "\n")]
    teacher = embed([*ids_of(backbone, example.question + " Steps:\n"), *steps, *words, *number])
    teacher_loss, teacher_states = written_out(backbone, teacher, number[1:], [*steps, *words, *number])

    distances = []
    for mine, other in list(zip(student_states, teacher_states, strict=True))[first_layer:]:
        gap = (mine - other.detach()).abs()
        smooth = torch.where(gap < 1, gap**2 / 2, gap - 0.5)
        distances.append(smooth.mean() / other.detach().std())
    return torch.stack([student_loss, teacher_loss, torch.stack(distances).mean()])


def gradient(backbone, loss):
    backbone.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in backbone.parameters()])


def test_without_the_embeddings_one_layer_fewer_is_compared(backbone):
    expected = torch.stack([naive(backbone, example, first_layer=1) for example in EXAMPLES])
    found = batched(backbone, EXAMPLES, distillation=Distillation(embeddings=False))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_losses_and_gradients_equal_the_definition(backbone):
    expected = torch.stack([naive(backbone, example) for example in EXAMPLES])
    found = batched(backbone, EXAMPLES)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for part in range(3):
        slow = gradient(backbone, torch.stack([naive(backbone, example)[part] for example in EXAMPLES]).sum())
        fast = gradient(backbone, batched(backbone, EXAMPLES)[:, part].sum())
        torch.testing.assert_close(fast, slow, atol=1e-3 * float(slow.abs().max()), rtol=1e-3)


def test_padding_and_the_other_rows_do_not_enter(backbone):
    alone = torch.cat([batched(backbone, [example]) for example in EXAMPLES])
    torch.testing.assert_close(batched(backbone, EXAMPLES), alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(batched(backbone, EXAMPLES[::-1]).flip(0), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "teacher_prompt", ["{question}\n", "Q: {question}", "{question}<|start-latent|><|end-latent|>"]
)
def test_encoding_what_the_prompts_share_once_is_only_a_shortcut(backbone, teacher_prompt, monkeypatch):
    """With prompts that share everything but a token, nothing, or all of the shorter one but a token."""
    forms = DistillationForms(teacher_prompt=teacher_prompt)
    found = batched(backbone, EXAMPLES, forms)
    monkeypatch.setattr(Lesson, "num_shared", 0)
    torch.testing.assert_close(batched(backbone, EXAMPLES, forms), found, atol=1e-4, rtol=1e-4)


def test_where_one_example_shares_nothing_the_others_are_not_harmed(backbone):
    """A question that begins as the teacher's form does, beside others that do not."""
    forms = DistillationForms(teacher_prompt="A: {question}")
    examples = [replace(EXAMPLES[0], question="A: B?"), replace(EXAMPLES[1], question="Many?")]
    assert [lesson.num_shared > 0 for lesson in build_lessons(backbone, examples, forms)] == [True, False]
    alone = torch.cat([batched(backbone, [example], forms) for example in examples])
    torch.testing.assert_close(batched(backbone, examples, forms), alone, atol=1e-4, rtol=1e-4)


def test_the_teacher_gets_no_gradient_from_the_distillation():
    student, teacher = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 3, 8, requires_grad=True)
    state_distance(student, teacher).sum().backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_distillation_moves_nothing_that_only_the_teacher_reads(backbone):
    """The embedding of the letter `<` occurs in the written steps alone, so its gradient comes through the teacher alone."""
    backbone.zero_grad()
    table = backbone.model.get_input_embeddings().weight
    step_id = ids_of(backbone, "<")[0]
    batched(backbone, EXAMPLES)[:, 2].sum().backward()
    assert table.grad[step_id].abs().sum() == 0
    assert table.grad[backbone.end_of_thought_id].abs().sum() > 0


def test_distance_by_hand():
    """Two layers. Gaps of 0.5 and 3 from a teacher (0, 2) with deviation sqrt(2): (0.125 + 2.5) / 2 / sqrt(2); and no gap."""
    teacher = torch.tensor([[[0.0, 2.0]], [[1.0, -1.0]]])
    student = torch.tensor([[[0.5, 5.0]], [[1.0, -1.0]]])
    expected = (0.125 + 2.5) / 2 / 2**0.5 / 2
    torch.testing.assert_close(state_distance(student, teacher), torch.tensor([expected]))


def test_the_deviation_of_a_batch_is_that_of_all_its_states():
    """One layer, two examples: the teacher's entries 0, 2, 4, 6 deviate by sqrt(20 / 3); gaps of 1 weigh a half each."""
    teacher = torch.tensor([[[0.0, 2.0], [4.0, 6.0]]])
    found = state_distance(teacher + torch.tensor([1.0, 0.0]), teacher, "batch")
    torch.testing.assert_close(found, torch.full((2,), 0.25 / (20 / 3) ** 0.5))


def test_positions_that_count_padding_are_those_of_left_padded_prompts(tiny_backbone):
    """GPT-2 with its learned positions: a batch padded on the left, masked, without position ids, equals the option."""
    backbone = tiny_backbone("codi", "gpt2", num_latents=3)
    prompts = backbone.encode_prompts([example.question for example in EXAMPLES])
    width = max(map(len, prompts))
    losses = []
    for example, prompt in zip(EXAMPLES, prompts, strict=True):
        pad = width - len(prompt)
        embeds = backbone.embed(torch.tensor([[backbone.pad_token_id] * pad + prompt]))
        mask = torch.tensor([[0] * pad + [1] * len(prompt)])
        for _ in range(3):
            hidden = backbone.model.base_model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state[:, -1:]
            embeds = torch.cat([embeds, backbone.projector(hidden)], dim=1)
            mask = torch.cat([mask, torch.ones(1, 1, dtype=torch.long)], dim=1)
        answer = [*ids_of(backbone, f"The answer is: {example.answer}"), backbone.eos_token_id]
        embeds = torch.cat([embeds, backbone.embed(torch.tensor([[backbone.end_of_thought_id, *answer]]))], dim=1)
        mask = torch.cat([mask, torch.ones(1, len(answer) + 1, dtype=torch.long)], dim=1)
        logits = backbone.model(inputs_embeds=embeds, attention_mask=mask).logits[0, -len(answer) - 1 : -1]
        losses.append(cross_entropy(logits, torch.tensor(answer)))
    found = batched(backbone, EXAMPLES, count_padding=True)[:, 0]
    torch.testing.assert_close(found, torch.stack(losses), atol=1e-4, rtol=1e-4)
    assert (batched(backbone, EXAMPLES)[:, 0] - found).abs().max() > 1e-3


def test_number_starts_at_its_first_token_whatever_blank_comes_with_it(tiny_backbone):
    backbone = tiny_backbone("codi")
    for form, answer, number in (("The answer is: {answer}", "72", "72"), ("{answer} it is", "-5", "-5 it is")):
        (lesson,) = build_lessons(backbone, [ReasoningExample("Q?", (), answer)], DistillationForms(answer=form))
        expected = [*ids_of(backbone, number), backbone.eos_token_id]
        assert lesson.student_tail[-lesson.number_length :] == expected == lesson.teacher_tail[-lesson.number_length :]


def test_forms_without_their_field_are_refused():
    with pytest.raises(UserError, match="answer"):
        DistillationForms(answer="The answer.")

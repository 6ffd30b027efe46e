"""The losses against loops written out by hand, and what must not change them."""

import math

import pytest
import torch
from torch import Tensor

from latent_tts.errors import UserError
from latent_tts.reward.losses import (
    LABELS,
    TARGETS,
    LossSum,
    RewardLoss,
    bce_loss,
    contrastive_loss,
    require_valid_steps,
)


def batch(seed: int = 0, problems: int = 3, rollouts: int = 4, steps: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels in eighths (so that ties occur; problem 1 has a step of all zeros), and masks of ragged rollouts."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(problems, rollouts, steps, generator=generator)
    labels = torch.randint(0, 9, scores.shape, generator=generator) / 8
    labels[1, :, 0] = 0.0
    lengths = torch.randint(1, steps + 1, (problems, rollouts), generator=generator)
    lengths[0] = torch.tensor([5, 2, 2, 1])  # steps 3 to 5 of problem 0 have one rollout
    mask = torch.arange(steps) < lengths.unsqueeze(-1)
    return scores.requires_grad_(), labels.masked_fill(~mask, float("nan")), mask


def loop_contrastive(scores: Tensor, labels: Tensor, mask: Tensor, targets: str) -> tuple[float, int]:
    total, count = 0.0, 0
    for b in range(len(scores)):
        for t in range(scores.shape[2]):
            present = [n for n in range(scores.shape[1]) if mask[b, n, t]]
            y = {n: float(labels[b, n, t]) for n in present}
            if len(present) < 2 or sum(y.values()) == 0:
                continue
            if targets == "normalised":
                y = {n: y[n] / sum(y.values()) for n in present}
            if targets == "one_hot":
                best = [n for n in present if y[n] == max(y.values())]
                y = {n: (n in best) / len(best) for n in present}
            partition = sum(math.exp(float(scores[b, n, t])) for n in present)
            total -= sum(y[n] * math.log(math.exp(float(scores[b, n, t])) / partition) for n in present)
            count += 1
    return total, count


def loop_bce(scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[float, int]:
    total = 0.0
    for b, n, t in mask.nonzero().tolist():
        p, y = 1 / (1 + math.exp(-float(scores[b, n, t]))), float(labels[b, n, t])
        total -= y * math.log(p) + (1 - y) * math.log(1 - p)
    return total, int(mask.sum())


def losses(scores: Tensor, labels: Tensor, mask: Tensor) -> dict[str, LossSum]:
    every = {targets: contrastive_loss(scores, labels, mask, targets) for targets in TARGETS}
    return every | {"bce": bce_loss(scores, labels, mask)}


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_a_hand_written_loop(seed: int) -> None:
    scores, labels, mask = batch(seed)
    arguments = (scores.detach(), labels, mask)
    for name, loss in losses(*arguments).items():
        total, count = loop_bce(*arguments) if name == "bce" else loop_contrastive(*arguments, name)
        assert int(loss.num_terms) == count
        assert float(loss.total) == pytest.approx(total, rel=1e-5)
        assert float(loss.mean) == pytest.approx(total / count, rel=1e-5)


def test_a_loss_worked_out_on_paper() -> None:
    """Two rollouts with scores 0 and log 3, so probabilities 1/4 and 3/4; labels 1/2 and 1/2.

    raw: -(1/2 log 1/4 + 1/2 log 3/4); normalised and the tied one-hot are the same here.
    """
    scores = torch.tensor([[[0.0], [math.log(3)]]])
    labels, mask = torch.full_like(scores, 0.5), torch.ones_like(scores, dtype=torch.bool)
    expected = -(0.5 * math.log(1 / 4) + 0.5 * math.log(3 / 4))
    for targets in TARGETS:
        assert float(contrastive_loss(scores, labels, mask, targets).mean) == pytest.approx(expected)


@pytest.mark.parametrize("name", [*TARGETS, "bce"])
def test_padding_and_masked_steps_change_neither_loss_nor_gradient(name: str) -> None:
    scores, labels, mask = batch()
    before = losses(scores, labels, mask)[name]
    expected = torch.autograd.grad(before.mean, scores)[0]
    wide_scores = torch.cat([scores, torch.full((3, 4, 2), 1e4)], dim=2)
    wide_labels = torch.cat([labels, torch.full((3, 4, 2), float("nan"))], dim=2)
    wide_mask = torch.cat([mask, torch.zeros(3, 4, 2, dtype=torch.bool)], dim=2)
    after = losses(wide_scores, wide_labels, wide_mask)[name]
    assert after.num_terms == before.num_terms
    torch.testing.assert_close(after.total, before.total)
    torch.testing.assert_close(torch.autograd.grad(after.mean, scores)[0], expected)


@pytest.mark.parametrize("name", [*TARGETS, "bce"])
def test_permuting_rollouts_permutes_the_gradient(name: str) -> None:
    scores, labels, mask = batch()
    order = torch.tensor([2, 0, 3, 1])
    loss = losses(scores, labels, mask)[name].mean
    permuted = scores.detach()[:, order].requires_grad_()
    other = losses(permuted, labels[:, order], mask[:, order])[name].mean
    torch.testing.assert_close(loss, other)
    gradient = torch.autograd.grad(loss, scores)[0]
    torch.testing.assert_close(torch.autograd.grad(other, permuted)[0], gradient[:, order])


@pytest.mark.parametrize("name", [*TARGETS, "bce"])
def test_sums_of_parts_are_the_sum_of_the_whole(name: str) -> None:
    scores, labels, mask = batch()
    whole = losses(scores, labels, mask)[name]
    parts = [losses(scores[b : b + 1], labels[b : b + 1], mask[b : b + 1])[name] for b in range(3)]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    assert sum(int(part.num_terms) for part in parts) == int(whole.num_terms)


@pytest.mark.parametrize("name", [*TARGETS, "bce"])
def test_gradients_are_finite_and_zero_where_masked(name: str) -> None:
    scores, labels, mask = batch()
    mask = mask & torch.tensor([True, True, False]).view(3, 1, 1)  # a problem without any step
    gradient = torch.autograd.grad(losses(scores, labels.masked_fill(~mask, float("nan")), mask)[name].mean, scores)[0]
    assert gradient.isfinite().all() and not gradient[~mask].any()


def test_a_step_whose_labels_are_all_zero_gives_no_gradient_and_does_not_count() -> None:
    scores = torch.randn(1, 3, 2, requires_grad=True)
    labels = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]).T.unsqueeze(0)  # step 1 all zero
    for targets in TARGETS:
        loss = contrastive_loss(scores, labels, torch.ones(1, 3, 2, dtype=torch.bool), targets)
        assert int(loss.num_terms) == 1
        assert not torch.autograd.grad(loss.mean, scores)[0][:, :, 0].any()


def test_a_batch_without_any_valid_step_has_loss_zero() -> None:
    scores = torch.randn(1, 3, 2, requires_grad=True)
    loss = contrastive_loss(scores, torch.zeros(1, 3, 2), torch.ones(1, 3, 2, dtype=torch.bool)).mean
    assert float(loss) == 0.0 and not torch.autograd.grad(loss, scores)[0].any()


def test_weights_of_each_target() -> None:
    labels = torch.tensor([0.5, 0.25, 0.5, 0.0]).view(1, 4, 1)
    assert TARGETS["raw"](labels).flatten().tolist() == [0.5, 0.25, 0.5, 0.0]
    assert TARGETS["normalised"](labels).flatten().tolist() == pytest.approx([0.4, 0.2, 0.4, 0.0])
    assert TARGETS["one_hot"](labels).flatten().tolist() == [0.5, 0.0, 0.5, 0.0]
    assert all(not make(torch.zeros(1, 4, 1)).any() for make in TARGETS.values())


def test_labels_are_the_values_or_the_final_correctness() -> None:
    values, correct = torch.rand(2, 3, 4), torch.tensor([[True, False, True], [False, False, True]])
    assert torch.equal(LABELS["continuations"](values, correct), values)
    final = LABELS["final"](values, correct)
    assert final[0, 0].tolist() == [1.0] * 4 and final[1, 0].tolist() == [0.0] * 4


@pytest.mark.parametrize("targets", TARGETS)
def test_the_chosen_loss_is_that_of_the_chosen_labels_where_there_are_some(targets: str) -> None:
    scores, values, mask = batch()
    values = values.masked_fill(torch.arange(5) == 3, float("nan"))  # the fourth prefixes were not valued
    correct = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    valued = mask & (torch.arange(5) != 3)
    chosen = RewardLoss(targets=targets)(scores, values, correct, mask)
    assert torch.equal(chosen.total, contrastive_loss(scores, values, valued, targets).total)
    final = RewardLoss("bce", labels="final")(scores, values, correct, mask)
    assert torch.equal(final.total, bce_loss(scores, correct.float().unsqueeze(-1).expand(3, 4, 5), mask).total)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of contrastive, bce, got 'hinge'"),
        ({"targets": "soft"}, "targets must be one of raw, normalised, one_hot"),
        ({"labels": "guesses"}, "labels must be one of continuations, final"),
        ({"loss": "bce", "targets": "one_hot"}, "targets one_hot weigh the rollouts of a contrastive loss"),
    ],
)
def test_a_loss_that_does_not_exist_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RewardLoss(**options)


def test_one_rollout_cannot_be_contrasted() -> None:
    with pytest.raises(UserError, match="1 rollout a problem"):
        contrastive_loss(torch.zeros(2, 1, 3), torch.ones(2, 1, 3), torch.ones(2, 1, 3, dtype=torch.bool))
    assert (
        int(bce_loss(torch.zeros(2, 1, 3), torch.ones(2, 1, 3), torch.ones(2, 1, 3, dtype=torch.bool)).num_terms) == 6
    )


def test_a_problem_without_a_valid_step_is_named() -> None:
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    require_valid_steps(mask, ["a", "b"])
    mask[1] = False
    with pytest.raises(UserError, match="Problem b has no valid step"):
        require_valid_steps(mask, ["a", "b"])

"""The losses against hand-computed cases and PyTorch's own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from losses import BCEDiceLoss, CEDiceLoss
from support.reading import IGNORED


def test_one_class_by_hand():
    logits = torch.tensor([[[[np.log(3.0), -np.log(3.0)]]], [[[0.0, 0.0]]]])  # probabilities 3/4, 1/4; 1/2, 1/2
    targets = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 0.0]]]])
    dice = ((2 * 0.75 + 1) / (1 + 1 + 1) + (0 + 1) / (1 + 0 + 1)) / 2
    bce = -(2 * np.log(0.75) + 2 * np.log(0.5)) / 4
    assert BCEDiceLoss()(logits, targets).item() == pytest.approx(bce + 1 - dice)


def test_pixels_near_a_boundary_weigh_more():
    logits = torch.tensor([[[[0.0, 0.0, -np.log(3.0), -np.log(3.0)]]]])  # probabilities 1/2, 1/2, 1/4, 1/4
    targets = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    dice = (2 * 0.5 + 1) / (1.5 + 1 + 1)
    near, far = -np.log(0.5), -np.log(0.75)
    for boundary_weight, bce in ((5, (6 * 2 * near + 2 * far) / 14), (0, (2 * near + 2 * far) / 4)):
        loss = BCEDiceLoss(boundary_weight, boundary=1)
        assert loss(logits, targets).item() == pytest.approx(bce + 1 - dice)


def test_several_classes_by_hand():
    # Two images of 2x1 pixels. Probabilities are 1/2, 1/4, 1/4; the second image ignores its second pixel.
    logits = torch.tensor([2.0, 1.0, 1.0]).log().view(1, 3, 1, 1).expand(2, 3, 1, 2)
    targets = torch.tensor([[[0, 1]], [[2, IGNORED]]])
    entropy = (-(np.log(1 / 2) + np.log(1 / 4)) / 2 - np.log(1 / 4)) / 2  # all pixels are as near a boundary
    first = [(2 * 0.5 + 1) / (1 + 1 + 1), (2 * 0.25 + 1) / (0.5 + 1 + 1), (0 + 1) / (0.5 + 0 + 1)]
    second = [(0 + 1) / (0.5 + 1), (0 + 1) / (0.25 + 1), (2 * 0.25 + 1) / (0.25 + 1 + 1)]
    expected = entropy - np.log(first + second).mean()
    assert CEDiceLoss()(logits, targets).item() == pytest.approx(expected)


def test_cross_entropy_is_pytorchs_with_weights_at_boundaries():
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 4, 9, 9), torch.randint(4, (3, 9, 9))
    targets[0, :, 4:], targets[0, :, :4] = 1, 0  # an image with one boundary, and pixels to ignore
    targets[0, 2, 3:6] = targets[2, :4] = IGNORED
    weights = torch.ones(3, 9, 9)
    for n, y, x in np.ndindex(3, 9, 9):  # two or more classes within 2 pixels
        window = targets[n, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        weights[n, y, x] += 5 * (len(set(window[window != IGNORED].tolist())) > 1)
    kept = targets != IGNORED
    plain = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    means = [(plain[n] * weights[n])[kept[n]].sum() / weights[n][kept[n]].sum() for n in range(3)]
    truth = F.one_hot(targets * kept, 4).movedim(3, 1) * kept[:, None]
    probs = logits.softmax(1) * kept[:, None]
    dice = (2 * (probs * truth).sum((2, 3)) + 1) / (probs.sum((2, 3)) + truth.sum((2, 3)) + 1)
    expected = sum(means) / 3 - dice.log().mean()
    assert CEDiceLoss()(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    assert len(weights[0].unique()) == 2


def test_ignored_pixels_change_nothing():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randint(3, (2, 8, 8))
    targets[:, :, 5:] = IGNORED
    loss = CEDiceLoss()(logits, targets)
    loss.backward()
    assert (logits.grad[..., 5:] == 0).all() and (logits.grad[..., :5] != 0).all()
    other = logits.detach().clone()
    other[..., 5:] = 9 * torch.randn(2, 3, 8, 3)
    assert CEDiceLoss()(other, targets).item() == loss.item()
    nothing = CEDiceLoss()(logits, torch.full_like(targets, IGNORED))
    nothing.backward()
    assert nothing.item() == 0 and logits.grad.isfinite().all()


@pytest.mark.parametrize("classes", [1, 3])
def test_the_loss_of_two_batches_joined_is_the_mean_of_theirs(classes):
    torch.manual_seed(0)
    logits = torch.randn(6, classes, 8, 8)
    if classes == 1:
        loss, targets = BCEDiceLoss(), (torch.rand(6, 1, 8, 8) > 0.8).float()
    else:
        loss, targets = CEDiceLoss(), torch.randint(4, (6, 8, 8))
        targets[targets == 3] = targets[1] = IGNORED
    parts = (loss(logits[:3], targets[:3]) + loss(logits[3:], targets[3:])) / 2
    assert loss(logits, targets).item() == pytest.approx(parts.item())

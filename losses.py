"""The training loss."""

import torch.nn.functional as F
from torch import Tensor, nn


class BCEDiceLoss(nn.Module):
    """Binary cross-entropy plus one minus the soft Dice of each image: logits and targets (N, 1, H, W) to a scalar.

    Cross-entropy has a gradient everywhere. In it, the pixels within `border` pixels of an outline weigh
    1 + `border_weight` times what others do: they are few and decide how good a mask is. (Ronneberger et al. weigh
    the borders between touching cells so.) The Dice term (Milletari et al. 2016, https://arxiv.org/abs/1606.04797)
    keeps a small object from drowning in its background. Both are taken per image and then averaged, as the score
    is, so the loss of two batches joined is the mean of theirs.
    """

    def __init__(self, border_weight: float = 5.0, border: int = 2) -> None:
        super().__init__()
        self.border_weight, self.border = border_weight, border

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        window = {"kernel_size": 2 * self.border + 1, "stride": 1, "padding": self.border}
        near_outline = F.max_pool2d(targets, **window) + F.max_pool2d(-targets, **window)  # largest minus smallest
        weights = 1 + self.border_weight * near_outline
        weights = weights / weights.mean((1, 2, 3), keepdim=True)

        probs = logits.sigmoid().flatten(1)
        truth = targets.flatten(1)
        # One pixel is added above and below, so that nothing predicted on nothing there is a Dice of 1.
        dice = (2 * (probs * truth).sum(1) + 1) / (probs.sum(1) + truth.sum(1) + 1)
        return F.binary_cross_entropy_with_logits(logits, targets, weights) + 1 - dice.mean()

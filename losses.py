"""The training loss."""

import torch.nn.functional as F
from torch import Tensor, nn


class BCEDiceLoss(nn.Module):
    """Binary cross-entropy plus one minus the soft Dice of each image: logits and targets (N, 1, H, W) to a scalar.

    Cross-entropy has a gradient everywhere; the Dice term (Milletari et al. 2016, https://arxiv.org/abs/1606.04797)
    keeps a small object from drowning in its background. It is taken per image and then averaged, as the score is,
    so the loss of two batches joined is the mean of theirs.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        probs = logits.sigmoid().flatten(1)
        truth = targets.flatten(1)
        # One pixel is added above and below, so that nothing predicted on nothing there is a Dice of 1.
        dice = (2 * (probs * truth).sum(1) + 1) / (probs.sum(1) + truth.sum(1) + 1)
        return F.binary_cross_entropy_with_logits(logits, targets) + 1 - dice.mean()

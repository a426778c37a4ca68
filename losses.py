"""The training loss."""

import torch
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

    def weigh(self, classes: Tensor) -> Tensor:
        """Weights of pixels, (N, 1, H, W), from the class that each belongs to, (N, C, H, W) in {0, 1}: 0 for those
        of none, and a mean of 1 over each image."""
        near = F.max_pool2d(classes, 2 * self.border + 1, stride=1, padding=self.border)  # classes of the window
        weights = classes.sum(1, keepdim=True) * (1 + self.border_weight * (near.sum(1, keepdim=True) > 1))
        return weights / weights.mean((1, 2, 3), keepdim=True).clamp(min=1e-6)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights = self.weigh(torch.cat((1 - targets, targets), 1))
        probs = logits.sigmoid().flatten(1)
        truth = targets.flatten(1)
        # One pixel is added above and below, so that nothing predicted on nothing there is a Dice of 1.
        dice = (2 * (probs * truth).sum(1) + 1) / (probs.sum(1) + truth.sum(1) + 1)
        return F.binary_cross_entropy_with_logits(logits, targets, weights) + 1 - dice.mean()


class CEDiceLoss(BCEDiceLoss):
    """The same for several classes: logits (N, C, H, W) and targets (N, 1, H, W) with their numbers to a scalar.

    The Dice term is the mean over all classes, the background among them, of -ln(Dice), not of 1 - Dice: the two
    agree where Dice is near 1, but the gradient of the first doesn't fade for a small class that isn't found at all
    yet (Wong et al. 2018, https://arxiv.org/abs/1809.00076). A target that is no class, as support.reading.IGNORED,
    has no weight in either term; a batch of such alone gives 0.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_probs = logits.log_softmax(1)
        numbers = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1)
        truth = (targets == numbers).to(logits.dtype)  # 0 in all classes where ignored
        probs = log_probs.exp() * truth.sum(1, keepdim=True)
        dice = (2 * (probs * truth).sum((2, 3)) + 1) / (probs.sum((2, 3)) + truth.sum((2, 3)) + 1)  # (N, C)
        # Not F.cross_entropy, which CUDA can't compute the same way twice.
        return -(self.weigh(truth) * truth * log_probs).sum(1).mean() - dice.log().mean()

"""The training losses."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def as_targets(masks: Tensor) -> Tensor:
    """Masks (N, H, W) as losses take them, PyTorch's own too: of one class, bool or float, as float (N, 1, H, W);
    class numbers as int64 (N, H, W)."""
    one_class = masks.dtype == torch.bool or masks.is_floating_point()
    return masks.unsqueeze(1).float() if one_class else masks.long()


class BCEDiceLoss(nn.Module):
    """Binary cross-entropy plus one minus the soft Dice of each image: logits and targets (N, 1, H, W) to a scalar.

    In the cross-entropy, pixels within `boundary` pixels of a boundary weigh 1 + `boundary_weight` times as much
    as others: they are few and decide how good a mask is. (Ronneberger et al. weigh the boundaries between
    touching cells so.) The Dice term (Milletari et al. 2016, https://arxiv.org/abs/1606.04797) keeps a small
    object from drowning in its background. Both are means over images, as the score is, so the loss of two batches
    joined is the mean of theirs.
    """

    def __init__(self, boundary_weight: float = 5.0, boundary: int = 2) -> None:
        super().__init__()
        self.boundary_weight, self.boundary = boundary_weight, boundary

    def pixel_weights(self, classes: Tensor) -> Tensor:
        """Weights of pixels, (N, 1, H, W), from one-hot classes, (N, C, H, W): 0 for pixels of no class, and a mean
        of 1 over each image."""
        nearby = F.max_pool2d(classes, 2 * self.boundary + 1, stride=1, padding=self.boundary)  # in the window
        weights = classes.sum(1, keepdim=True) * (1 + self.boundary_weight * (nearby.sum(1, keepdim=True) > 1))
        return weights / weights.mean((1, 2, 3), keepdim=True).clamp(min=1e-6)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights = self.pixel_weights(torch.cat((1 - targets, targets), 1))
        bce = F.binary_cross_entropy_with_logits(logits, targets, weights)
        return bce + 1 - soft_dice(logits.sigmoid(), targets).mean()


class CEDiceLoss(BCEDiceLoss):
    """Cross-entropy plus Dice of several classes: logits (N, C, H, W) and targets, int64 (N, H, W), to a scalar.

    The Dice term is the mean over all classes of -ln(Dice), not of 1 - Dice: the two agree near a Dice of 1, but
    the gradient of the first doesn't fade for a small class that isn't found at all yet (Wong et al. 2018,
    https://arxiv.org/abs/1809.00076). Targets of support.reading.IGNORED have no weight in either term; a batch of
    such alone gives 0.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_probs = logits.log_softmax(1)
        classes = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1)
        one_hot = (targets.unsqueeze(1) == classes).to(logits.dtype)  # 0 in all classes if ignored
        probs = log_probs.exp() * one_hot.sum(1, keepdim=True)
        # Not F.cross_entropy, which CUDA can't compute the same way twice.
        cross_entropy = -(self.pixel_weights(one_hot) * one_hot * log_probs).sum(1).mean()
        return cross_entropy - soft_dice(probs, one_hot).log().mean()


def soft_dice(probs: Tensor, targets: Tensor) -> Tensor:
    """Dice of probabilities and targets in [0, 1], (N, C, H, W) twice, to (N, C). One pixel is added above and
    below, so that nothing predicted on nothing there is 1."""
    probs, targets = probs.flatten(2), targets.flatten(2)
    return (2 * (probs * targets).sum(2) + 1) / (probs.sum(2) + targets.sum(2) + 1)

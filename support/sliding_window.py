"""Images of any size, seen at their own scale in windows."""

import numpy as np
import torch
from torch import Tensor, nn


class SlidingWindow(nn.Module):
    """A network that was trained on squares of `crop` pixels, and sees images in overlapping windows of twice that.

    Images (N, C, H, W) of any size, as UNET takes them, become logits (N, K, H, W), float32 on the images' device.
    Windows overlap by half of `crop`, where one's logits fade into the next's. Beside images and logits, memory
    holds one window of each image.
    """

    def __init__(self, model: nn.Module, crop: int) -> None:
        super().__init__()
        self.model, self.crop = model, crop

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if min(height, width) < self.crop:
            rows, columns = (_mirrored(length, self.crop) for length in (height, width))
            return self(images[:, :, rows][..., columns])[..., :height, :width]
        device, logits = next(self.parameters()).device, None
        tops, lefts = (blend(length, 2 * self.crop, self.crop // 2) for length in (height, width))
        for top, down in tops.items():
            for left, right in lefts.items():
                rows, columns = slice(top, top + len(down)), slice(left, left + len(right))
                seen = images[:, :, rows, columns].to(device)
                output = self.model(seen).float().to(images.device)
                if logits is None:
                    logits = output.new_zeros(*output.shape[:2], height, width)
                logits[:, :, rows, columns] += output * (down[:, None] * right).to(images.device)
        return logits


def blend(length: int, side: int, overlap: int) -> dict[int, Tensor]:
    """Where windows of `side` pixels begin along `length`, each with its pixels' weights: windows overlap by
    `overlap` or more, in which weights rise and fall, and all that a pixel has add up to 1."""
    side = min(side, length)
    count = 1 - (side - length) // max(1, side - overlap)  # rounded up
    starts = dict.fromkeys(torch.linspace(0, length - side, count).round().int().tolist())
    rise = ((torch.arange(side) + 0.5) / max(1, overlap)).clamp(max=1) ** 2  # least where least is seen around it
    weights, total = torch.minimum(rise, rise.flip(0)), torch.zeros(length)
    for start in starts:
        total[start : start + side] += weights
    return {start: weights / total[start : start + side] for start in starts}


def _mirrored(length: int, wanted: int) -> Tensor:
    """Indices that continue `length` pixels by their mirror image, again and again, if more are `wanted`."""
    return torch.from_numpy(np.pad(np.arange(length), (0, max(0, wanted - length)), mode="reflect"))

"""Images of any size, seen at their own scale in windows."""

import torch
from torch import Tensor, nn

MANY_PIXELS = 2**26  # of an image, from which on logits are kept in float16


class SlidingWindow(nn.Module):
    """A network that sees an image in overlapping squares of `side` pixels, and blends their logits.

    Images (N, C, H, W) of any size, float32 in [0, 1] or, in a quarter of the memory, uint8, become logits (N, K,
    H, W) on the images' device. A window's pixels count the more the nearer they are to its middle, where the
    network sees most around them. Beside image and logits, memory holds `batch_size` windows."""

    def __init__(self, model: nn.Module, side: int, batch_size: int = 8) -> None:
        super().__init__()
        self.model, self.side, self.batch_size = model, side, batch_size

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if min(height, width) < self.side:
            rows, columns = (_mirror(length, max(length, self.side), images.device) for length in (height, width))
            return self(images[:, :, rows][..., columns])[..., :height, :width]
        return torch.stack([self._predict(image) for image in images])

    def _predict(self, image: Tensor) -> Tensor:
        """Logits (K, H, W) of an image (C, H, W)."""
        side, device, size = self.side, next(self.parameters()).device, image.shape[1:]
        tops, lefts = (_weights(length, side) for length in size)
        places = [(top, left) for top in tops for left in lefts]
        logits = None
        for first in range(0, len(places), self.batch_size):
            batch = places[first : first + self.batch_size]
            windows = torch.stack([image[:, top : top + side, left : left + side] for top, left in batch]).to(
                device
            )
            windows = windows / 255 if windows.dtype == torch.uint8 else windows
            outputs = self.model(windows).float().to(image.device)
            if logits is None:
                dtype = torch.float16 if size.numel() > MANY_PIXELS else torch.float32
                logits = torch.zeros(outputs.shape[1], *size, dtype=dtype, device=image.device)
            for (top, left), output in zip(batch, outputs, strict=True):
                weights = (tops[top][:, None] * lefts[left]).to(image.device)
                logits[:, top : top + side, left : left + side] += output * weights
        return logits


def _weights(length: int, side: int) -> dict[int, Tensor]:
    """Where windows begin along so many pixels, at most half a window apart, each with the weights of its pixels.
    Those of all windows add up to 1 at each pixel."""
    count = 1 - (-(length - side) // max(1, side // 2))  # rounded up
    starts = torch.linspace(0, length - side, count).round().int().tolist()
    tent = 1 - (2 * (torch.arange(side) + 0.5) / side - 1).abs()
    total = torch.zeros(length)
    for start in starts:
        total[start : start + side] += tent
    return {start: tent / total[start : start + side] for start in starts}


def _mirror(length: int, wanted: int, device: torch.device) -> Tensor:
    """Indices that continue `length` pixels to the `wanted` number by their mirror image, again and again."""
    period = max(1, 2 * (length - 1))
    indices = torch.arange(wanted, device=device) % period
    return torch.where(indices < length, indices, period - indices)

"""Images of any size, seen at their own scale in windows."""

import torch
from torch import Tensor, nn

MANY_PIXELS = 2**26  # of an image, from which on logits are kept in float16


class SlidingWindow(nn.Module):
    """A network that was trained on squares of `crop` pixels, and sees images in overlapping windows of twice that.

    Images (N, C, H, W) of any size, float32 in [0, 1] or, in a quarter of the memory, uint8, become logits
    (N, K, H, W) on the images' device. Windows overlap by half of `crop`, where one's logits fade into the next's.
    Beside image and logits, memory holds `batch_size` windows.
    """

    def __init__(self, model: nn.Module, crop: int, batch_size: int = 4) -> None:
        super().__init__()
        self.model, self.crop, self.batch_size = model, crop, batch_size

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if min(height, width) < self.crop:
            rows, columns = (_mirror(length, max(length, self.crop), images.device) for length in (height, width))
            return self(images[:, :, rows][..., columns])[..., :height, :width]
        logits = [self._predict(image) for image in images]
        return torch.stack(logits) if len(logits) > 1 else logits[0][None]  # which copies nothing

    def _predict(self, image: Tensor) -> Tensor:
        """Logits (K, H, W) of an image (C, H, W)."""
        device, (height, width) = next(self.parameters()).device, image.shape[1:]
        tops, lefts = (blend(length, 2 * self.crop, self.crop // 2) for length in (height, width))
        windows = [
            (slice(top, top + len(down)), slice(left, left + len(right)), down[:, None], right)
            for top, down in tops.items()
            for left, right in lefts.items()
        ]
        logits = None
        for first in range(0, len(windows), self.batch_size):
            batch = windows[first : first + self.batch_size]
            seen = torch.stack([image[:, rows, columns] for rows, columns, *_ in batch]).to(device)
            outputs = self.model(seen / 255 if seen.dtype == torch.uint8 else seen).float().to(image.device)
            if logits is None:
                dtype = torch.float16 if height * width > MANY_PIXELS else torch.float32
                logits = torch.zeros(outputs.shape[1], height, width, dtype=dtype, device=image.device)
            for (rows, columns, down, right), output in zip(batch, outputs, strict=True):
                logits[:, rows, columns] += output * (down * right).to(image.device)
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


def _mirror(length: int, wanted: int, device: torch.device) -> Tensor:
    """Indices that continue `length` pixels to the `wanted` number by their mirror image, again and again."""
    period = max(1, 2 * (length - 1))
    indices = torch.arange(wanted, device=device) % period
    return torch.where(indices < length, indices, period - indices)

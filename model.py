"""The U-Net of Ronneberger, Fischer and Brox (2015), https://arxiv.org/abs/1505.04597.

Departures from the paper: the convolutions are padded, so the logits have the image's size and the skips need no
crop; each convolution is followed by BatchNorm.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm and ReLU: (N, in_channels, H, W) to (N, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),  # BatchNorm brings the bias
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class UNET(nn.Module):
    """U-Net: images (N, in_channels, H, W) to logits (N, out_channels, H, W).

    `features` are the channels of each level on the way down; the bottleneck has twice the last. H and W may be any
    size from 2 ** len(features) pixels up; a smaller image raises a ValueError.
    """

    def __init__(
        self, in_channels: int = 3, out_channels: int = 1, features: Sequence[int] = (64, 128, 256, 512)
    ) -> None:
        super().__init__()
        self.arguments = {"in_channels": in_channels, "out_channels": out_channels, "features": list(features)}
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2)

        channels = in_channels
        for feature in features:
            self.downs.append(DoubleConv(channels, feature))
            channels = feature

        self.bottleneck = DoubleConv(channels, channels * 2)
        channels *= 2

        for feature in reversed(features):
            self.ups.append(nn.ConvTranspose2d(channels, feature, kernel_size=2, stride=2))
            self.ups.append(DoubleConv(feature * 2, feature))  # the skip brings the other half
            channels = feature

        self.final_conv = nn.Conv2d(features[0], out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        smallest = 2 ** len(self.downs)
        if min(height, width) < smallest:
            raise ValueError(
                f"an image of {width}x{height} pixels is too small for a U-Net of {len(self.downs)} levels: "
                f"both sides need at least {smallest}"
            )

        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            x = self.pool(x)  # (N, C, H/2, W/2)

        x = self.bottleneck(x)  # (N, 2C, H/16, W/16) with four levels

        for upsample, double_conv in zip(self.ups[::2], self.ups[1::2], strict=True):
            x = upsample(x)  # (N, C, 2H, 2W)
            skip = skips.pop()
            if x.shape != skip.shape:  # pooling dropped the last row or column of an odd size
                x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = double_conv(torch.cat((skip, x), dim=1))  # (N, 2C, H, W) to (N, C, H, W)

        return self.final_conv(x)


def unet_arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the UNET with weights of these shapes. Raises a KeyError for another network's."""
    levels = sum(name.startswith("downs.") and name.endswith(".conv.0.weight") for name in weights)
    firsts = [weights[f"downs.{level}.conv.0.weight"] for level in range(max(1, levels))]
    return {
        "in_channels": firsts[0].shape[1],
        "out_channels": len(weights["final_conv.weight"]),
        "features": [len(first) for first in firsts],
    }

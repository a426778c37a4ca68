"""The U-Net of Ronneberger, Fischer and Brox (2015), https://arxiv.org/abs/1505.04597.

Departures from the paper: the convolutions are padded, so the logits have the image's size and the skips need no
crop; each convolution is followed by BatchNorm.
"""

import math
from collections.abc import Mapping, Sequence
from types import MethodType
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


def to_float(images: Tensor) -> Tensor:
    """Images as the network computes with them: uint8, which take a quarter of the memory on their way here, become
    float32 in [0, 1]; others stay as they are."""
    return images / 255 if images.dtype == torch.uint8 else images


class UNET(nn.Module):
    """U-Net: images (N, in_channels, H, W), uint8 or in [0, 1], to logits (N, out_channels, H, W).

    `features` are the channels of each level on the way down; the bottleneck has twice the last. H and W may be any
    size from 2 ** len(features) pixels up; a smaller image raises a ValueError.

    With `encoder`, the name of one of timm's networks, its stages take the place of the levels that they can: a
    ResNet's all but the first, since it halves the image at once. `features` are then the channels on the way up,
    and those of the first levels; there is one for each time that the encoder halves the image. Its weights are
    random until they are loaded.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        features: Sequence[int] = (64, 128, 256, 512),
        encoder: str | None = None,
    ) -> None:
        super().__init__()
        self.arguments = {"in_channels": in_channels, "out_channels": out_channels, "features": list(features)}
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2)

        if encoder:
            self.arguments["encoder"] = encoder
            self.encoder = Encoder(encoder, in_channels)
            stages, levels = self.encoder.channels, self.encoder.levels
            if len(features) != levels:
                raise ValueError(
                    f"{encoder} halves the image {levels} times, and there are {len(features)} features"
                )
        else:
            stages = [2 * features[-1]]  # the bottleneck's channels

        channels = in_channels
        for feature in features[: len(features) + 1 - len(stages)]:
            self.downs.append(DoubleConv(channels, feature))
            channels = feature

        if not encoder:
            self.bottleneck = DoubleConv(channels, stages[0])

        skips = [*features[: len(self.downs)], *stages]
        channels = skips.pop()
        for feature in reversed(features):
            self.ups.append(nn.ConvTranspose2d(channels, feature, kernel_size=2, stride=2))
            self.ups.append(DoubleConv(feature + skips.pop(), feature))
            channels = feature

        self.final_conv = nn.Conv2d(features[0], out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        levels = len(self.ups) // 2
        if min(height, width) < 2**levels:
            raise ValueError(
                f"an image of {width}x{height} pixels is too small for a U-Net of {levels} levels: "
                f"both sides need at least {2**levels}"
            )

        images = x = to_float(x)
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            x = self.pool(x)  # (N, C, H/2, W/2)

        if hasattr(self, "encoder"):
            skips += self.encoder(images)  # (N, C, H/2, W/2) to (N, C, H/32, W/32), for most
            x = skips.pop()
        else:
            x = self.bottleneck(x)  # (N, 2C, H/16, W/16) with four levels

        for upsample, double_conv in zip(self.ups[::2], self.ups[1::2], strict=True):
            x = upsample(x)  # (N, C, 2H, 2W)
            skip = skips.pop()
            if x.shape[2:] != skip.shape[2:]:  # an odd size was halved
                x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = double_conv(torch.cat((skip, x), dim=1))  # (N, 2C, H, W) to (N, C, H, W)

        return self.final_conv(x)


class Encoder(nn.Module):
    """One of timm's networks: images (N, in_channels, H, W) in [0, 1] to the features of its stages, (N, C, h, w),
    each at half the size of the one before. It normalizes images as those were that it was trained on.

    `channels` are those of the stages, and `levels` is the number of times that the last one has halved the image.
    Raises a ValueError for a name that timm doesn't know, or whose network gives no features of images of any size.
    """

    def __init__(self, name: str, in_channels: int = 3) -> None:
        super().__init__()
        import timm  # only here: it takes seconds, and the U-Net of the paper doesn't need it

        try:
            self.network = timm.create_model(name, features_only=True, in_chans=in_channels)
            with torch.no_grad():
                self.network.eval()(torch.zeros(1, in_channels, 67, 97))
        except (RuntimeError, AssertionError, AttributeError, TypeError) as error:
            raise ValueError(f"{name} can't be an encoder: {error}") from error
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                module.forward = MethodType(in_float32, module)  # not a wrapper, which would change weights' names
        self.in_channels, self.channels = in_channels, self.network.feature_info.channels()
        self.levels = int(math.log2(self.network.feature_info.reduction()[-1]))
        for statistic in ("mean", "std"):  # of red, green and blue; of other channels, their mean
            values = torch.tensor(self.network.pretrained_cfg[statistic])
            values = values if in_channels == 3 else values.mean().repeat(in_channels)
            self.register_buffer(statistic, values.view(-1, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.network((images - self.mean) / self.std)


def in_float32(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution without a CPU's autocast, but in its precision again behind it. For depthwise ones: in bfloat16
    their backward pass takes ten to a hundred times as long (oneDNN in torch 2.14)."""
    if not torch.is_autocast_enabled("cpu"):
        return type(conv).forward(conv, x)
    with torch.autocast("cpu", enabled=False):
        return type(conv).forward(conv, x.float()).to(x.dtype)


def unet_arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the UNET with weights of these shapes. Raises a KeyError for another network's."""
    levels = sum(name.startswith("downs.") and name.endswith(".conv.0.weight") for name in weights)
    firsts = [weights[f"downs.{level}.conv.0.weight"] for level in range(max(1, levels))]
    return {
        "in_channels": firsts[0].shape[1],
        "out_channels": len(weights["final_conv.weight"]),
        "features": [len(first) for first in firsts],
    }

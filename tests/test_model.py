import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import UNET, DoubleConv


def plain_unet(weights: dict[str, Tensor], image: Tensor, levels: int) -> Tensor:
    """The network written out by hand over a state dict with the tutorial's names, in evaluation mode."""

    def double_conv(x: Tensor, name: str) -> Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            x = F.conv2d(x, weights[f"{name}.conv.{conv}.weight"], padding=1)
            mean, var, gain, bias = (
                weights[f"{name}.conv.{norm}.{k}"].view(1, -1, 1, 1)
                for k in ("running_mean", "running_var", "weight", "bias")
            )
            x = ((x - mean) / torch.sqrt(var + 1e-5) * gain + bias).clamp(min=0)
        return x

    skips, x = [], image
    for level in range(levels):
        skips.append(double_conv(x, f"downs.{level}"))
        x = F.max_pool2d(skips[-1], 2)
    x = double_conv(x, "bottleneck")
    for level in range(levels):
        skip = skips[levels - 1 - level]
        x = F.conv_transpose2d(x, weights[f"ups.{2 * level}.weight"], weights[f"ups.{2 * level}.bias"], stride=2)
        x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
        x = double_conv(torch.cat([skip, x], 1), f"ups.{2 * level + 1}")
    return F.conv2d(x, weights["final_conv.weight"], weights["final_conv.bias"])


def settled(model: UNET) -> UNET:
    """The model in evaluation mode with BatchNorm statistics that are not the initial 0 and 1."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


@pytest.mark.parametrize("channels, height, width", [(3, 64, 96), (1, 161, 161), (4, 17, 31), (3, 1280, 1918)])
def test_agrees_with_plain_reference(channels, height, width):
    model = settled(UNET(in_channels=channels, out_channels=2, features=[2, 3, 4, 5]))
    image = torch.randn(1, channels, height, width)
    with torch.no_grad():
        logits = model(image)
        expected = plain_unet(model.state_dict(), image, levels=4)
    assert logits.shape == (1, 2, height, width)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_state_dict_has_the_tutorials_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in UNET().state_dict().items()}
    assert shapes["downs.0.conv.0.weight"] == (64, 3, 3, 3)
    assert shapes["downs.3.conv.4.running_var"] == (512,)
    assert shapes["bottleneck.conv.0.weight"] == (1024, 512, 3, 3)
    assert shapes["ups.0.weight"] == (1024, 512, 2, 2)
    assert shapes["ups.1.conv.0.weight"] == (512, 1024, 3, 3)
    assert shapes["ups.7.conv.3.weight"] == (64, 64, 3, 3)
    assert shapes["final_conv.weight"] == (1, 64, 1, 1)
    assert sum(p.numel() for p in UNET().parameters()) == 31_037_633
    assert not any(name.endswith("conv.0.bias") for name in shapes)


def test_double_conv_keeps_the_size():
    assert DoubleConv(3, 8)(torch.rand(2, 3, 7, 9)).shape == (2, 8, 7, 9)


def test_smallest_size_and_one_below_it():
    model = UNET(features=[2, 2, 2]).eval()
    assert model(torch.rand(1, 3, 8, 8)).shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match="20x7 pixels is too small.*at least 8"):
        model(torch.rand(1, 3, 7, 20))


def test_overfits_one_batch():
    torch.manual_seed(0)
    model = UNET(features=[8, 16])
    images = torch.rand(2, 3, 16, 24)
    truth = torch.zeros(2, 1, 16, 24)
    truth[0, :, 4:12, 5:20] = truth[1, :, 2:9, 3:9] = 1
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.binary_cross_entropy_with_logits(model(images), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((model(images) > 0) == (truth > 0)).all()


def test_bytes_are_seen_as_floats():
    model, pixels = UNET(features=[4, 8]).eval(), torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    assert torch.equal(model(pixels), model(pixels / 255))

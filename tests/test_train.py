import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_pairs
from PIL import Image

import train
from losses import BCEDiceLoss
from model import UNET
from support.checkpoint import read_checkpoint
from support.errors import BadInput

ROOT = Path(__file__).parent.parent
TUTORIAL_SCRIPT = """
import albumentations as A
import torch
import torch.nn as nn
from albumentations.pytorch import ToTensorV2
from model import UNET
from train import train_fn
from utils import check_accuracy, get_loaders, load_checkpoint, save_checkpoint, save_predictions_as_imgs

transform = A.Compose([
    A.Resize(height=32, width=48),
    A.Rotate(limit=35, p=1.0),
    A.HorizontalFlip(p=0.5),
    A.Normalize(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0], max_pixel_value=255.0),
    ToTensorV2(),
])
model = UNET(in_channels=3, out_channels=1, features=[4, 8]).to("cpu")
loss_fn = nn.BCEWithLogitsLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
train_loader, val_loader = get_loaders("{0}/train_images", "{0}/train_masks", "{0}/val_images", "{0}/val_masks",
                                       8, transform, transform, 2, True)
check_accuracy(val_loader, model, device="cpu")
scaler = torch.amp.GradScaler("cpu", enabled=False)
train_fn(train_loader, model, optimizer, loss_fn, scaler)
checkpoint = {{"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}}
save_checkpoint(checkpoint)
check_accuracy(val_loader, model, device="cpu")
save_predictions_as_imgs(val_loader, model, folder="saved_images/", device="cpu")
load_checkpoint(torch.load("my_checkpoint.pth.tar"), model)
"""


def out(folder: Path, *words: str) -> list[str]:
    return ["--OUT_DIR", str(folder), *words]


def test_a_run_leaves_a_checkpoint_and_pictures(folders, tmp_path, capsys):
    train.main(folders + out(tmp_path))
    checkpoint = read_checkpoint(tmp_path / "my_checkpoint.pth.tar")
    assert checkpoint["epoch"] == 2 and checkpoint["constants"]["FEATURES"] == [4, 8]
    assert {"state_dict", "optimizer", "scheduler", "scaler"} <= checkpoint.keys()
    for epoch in ("epoch_001", "epoch_002"):
        pictures = sorted(path.name for path in (tmp_path / "saved_images" / epoch).iterdir())
        names = [f"{3:012x}_{view:02d}" for view in range(1, 6)]
        expected = [f"{name}_{kind}.png" for name in names for kind in ("errors", "pred")]
        assert pictures == [*expected, "grid.png", "scores.json"]
    mask = np.asarray(Image.open(tmp_path / "saved_images/epoch_002" / pictures[1]))
    assert mask.shape == (32, 48) and set(np.unique(mask)) <= {0, 255}
    printed = capsys.readouterr().out
    assert "12 images to learn from, 5 to score on; 2 a step, 6 steps an epoch" in printed
    assert printed.count("5 images at 32x48: dice 0.") == 2


def test_it_learns(folders, tmp_path, capsys):
    train.main(folders + out(tmp_path, "--NUM_EPOCHS", "12", "--FEATURES", "8", "16", "--LEARNING_RATE", "0.1"))
    last = [line for line in capsys.readouterr().out.splitlines() if "dice" in line][-1]
    assert float(last.partition("dice ")[2].partition(",")[0]) > 0.9


def test_a_batch_in_parts_has_the_gradient_of_the_whole():
    torch.manual_seed(0)
    batch = torch.rand(5, 3, 16, 24), (torch.rand(5, 16, 24) > 0.5).float()
    weights, losses = [], []
    for accumulate in (1, 2, 5):
        torch.manual_seed(1)
        model = UNET(features=[4, 8]).eval()  # BatchNorm's batch statistics would be those of each part
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        losses.append(train.train_fn([batch], model, optimizer, BCEDiceLoss(), scaler, accumulate=accumulate))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_weights(folders, tmp_path):
    weights = []
    for name, workers in (("a", "0"), ("b", "2"), ("c", "3")):
        train.main(folders + out(tmp_path / name, "--NUM_WORKERS", workers))
        weights.append(read_checkpoint(tmp_path / name / "my_checkpoint.pth.tar")["state_dict"])
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in weights[0])
    train.main(folders + out(tmp_path / "d", "--SEED", "1"))
    other = read_checkpoint(tmp_path / "d/my_checkpoint.pth.tar")["state_dict"]
    assert not torch.equal(weights[0]["final_conv.weight"], other["final_conv.weight"])


def test_a_new_run_sets_the_old_ones_results_aside(folders, tmp_path, capsys):
    train.main(folders + out(tmp_path, "--NUM_EPOCHS", "1"))
    old = (tmp_path / "my_checkpoint.pth.tar").read_bytes()
    train.main(folders + out(tmp_path, "--NUM_EPOCHS", "1", "--SEED", "1"))
    (aside,) = (tmp_path / "previous_runs").iterdir()
    for name in ("saved_images/index.html", "saved_images/images", "runs/train", "runs/val"):
        assert (aside / name).exists() and (tmp_path / name).exists()
    assert len(list((tmp_path / "runs").rglob("events.*"))) == 2
    assert (aside / "my_checkpoint.pth.tar").read_bytes() == old
    assert (aside / "saved_images/epoch_001/grid.png").exists()
    assert f"the results of the run before are now in {aside}" in capsys.readouterr().out


def test_loading_a_checkpoint_that_is_not_there_names_those_that_are(folders, tmp_path):
    (tmp_path / "other.pth.tar").touch()
    with pytest.raises(BadInput, match=r"my_checkpoint\.pth\.tar: no such checkpoint.*other\.pth\.tar"):
        train.main(folders + out(tmp_path, "--LOAD_MODEL"))
    train.main(folders + out(tmp_path / "small", "--NUM_EPOCHS", "1"))
    with pytest.raises(BadInput, match="made for another model"):
        train.main(folders + out(tmp_path / "small", "--LOAD_MODEL", "--FEATURES", "8", "8"))


def test_a_place_that_cannot_be_written_is_refused_before_training(folders, tmp_path, capsys):
    (tmp_path / "saved_images").write_text("a file")
    with pytest.raises(BadInput, match="saved_images: can't be written to"):
        train.main(folders + out(tmp_path))
    with pytest.raises(BadInput, match=r"file/out: can't be written to"):
        train.main(folders + out(tmp_path / "in/train_images" / f"{1:012x}_01.jpg" / "file/out"))
    assert "epoch 1" not in capsys.readouterr().out


def test_a_script_written_for_the_tutorial_runs_unchanged(tmp_path):
    for split, count in (("train", 9), ("val", 3)):
        write_pairs(
            tmp_path / f"{split}_images", tmp_path / f"{split}_masks", [f"{split}{i}" for i in range(count)]
        )
    script = TUTORIAL_SCRIPT.format(tmp_path)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 images at 32x48: dice") == 2
    assert (tmp_path / "my_checkpoint.pth.tar").exists()
    assert {path.name for path in (tmp_path / "saved_images").iterdir()} == {
        "grid.png",
        *(f"val{i}_pred.png" for i in range(3)),
    }


def test_the_command_line_trains_and_refuses(folders, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *folders, "--NUM_EPOCHS", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my_checkpoint.pth.tar").exists() and "loss=" in done.stderr

    (tmp_path / "in/val_masks" / f"{3:012x}_02_mask.gif").unlink()
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{3:012x}_02.jpg: no mask in" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_broken_file_found_by_a_worker_is_named_in_one_line(folders, tmp_path):
    broken = tmp_path / f"in/train_images/{1:012x}_03.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    command = [sys.executable, str(ROOT / "train.py"), *folders, "--NUM_WORKERS", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.splitlines()[-1].startswith(f"{broken}: can't be read")


def test_importing_train_does_nothing_visible(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_compiling_without_a_compiler_is_refused_in_one_line(folders, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    environment = {**os.environ, "PATH": nowhere, "CXX": nowhere, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c")}
    command = [sys.executable, train.__file__, *folders, "--OUT_DIR", str(tmp_path / "out"), "--COMPILE"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "batches of 2 images of 32x48: COMPILE finds no compiler (" in done.stderr

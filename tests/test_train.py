import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import write_set
from PIL import Image
from test_resume import stopped
from torch import nn

import predict
import train
from benchmarks.kills import end_of, same
from losses import BCEDiceLoss
from model import UNET
from support.checkpoint import read_checkpoint
from support.muon import Muon
from support.reading import IGNORED
from train import AtSize, train_fn
from utils import check_accuracy

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
    assert {"state_dict", "optimizer", "scaler"} <= checkpoint.keys()
    for epoch in ("epoch_001", "epoch_002"):
        pictures = sorted(path.name for path in (tmp_path / "saved_images" / epoch).iterdir())
        names = [f"{3:012x}_{view:02d}" for view in range(1, 6)]
        expected = [f"{name}_{kind}.png" for name in names for kind in ("errors", "pred")]
        assert pictures == [*expected, "grid.png", "scores.csv", "scores.json"]
    rows = list(csv.reader((tmp_path / "saved_images/epoch_002/scores.csv").open()))[1:]
    assert [float(row[1]) for row in rows] == sorted(float(row[1]) for row in rows) and len(rows) == 5
    for name, *scores in rows:
        truth = np.asarray(Image.open(tmp_path / f"saved_images/images/{Path(name).stem}_target.png")) > 0
        predicted = np.asarray(Image.open(tmp_path / f"saved_images/epoch_002/{Path(name).stem}_pred.png")) > 0
        both, p, t = (truth & predicted).sum(), max(1, predicted.sum()), truth.sum()
        expected = [2 * both / (predicted.sum() + t), both / (truth | predicted).sum(), both / p, both / t]
        assert list(map(float, scores)) == pytest.approx([*expected, truth.mean()], abs=1e-5)
    mask = np.asarray(Image.open(tmp_path / "saved_images/epoch_002" / pictures[1]))
    assert mask.shape == (32, 48) and set(np.unique(mask)) <= {0, 255}
    printed = capsys.readouterr().out
    assert (
        "12 training images, 5 validation images; batches of 2\nFEATURES 4 8; 2 epochs of 6 steps; cpu" in printed
    )
    assert printed.count("5 images at 48x32: dice 0.") == 2


def test_a_batch_in_parts_has_the_gradient_of_the_whole():
    torch.manual_seed(0)
    batch = torch.rand(5, 3, 16, 24), (torch.rand(5, 16, 24) > 0.5).float()
    weights, losses = [], []
    for parts in (1, 2, 5):
        torch.manual_seed(1)
        model = UNET(features=[4, 8]).eval()  # BatchNorm's batch statistics would be those of each part
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        losses.append(train.train_fn([batch], model, optimizer, BCEDiceLoss(), scaler, accumulation_steps=parts))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "classes, loss_fn", [(1, nn.BCEWithLogitsLoss()), (3, nn.CrossEntropyLoss(ignore_index=IGNORED))]
)
def test_pytorchs_own_losses_fit_the_masks(classes, loss_fn):
    masks = torch.randint(0, max(2, classes), (2, 16, 24), dtype=torch.uint8)
    masks[:, 0] = IGNORED if classes > 1 else 0
    images = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    batch = images, masks if classes > 1 else masks.bool()  # as CarvanaDataset gives them
    model = UNET(out_channels=classes, features=[4, 8])
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", enabled=False)
    assert 0 < train_fn([batch], model, optimizer, loss_fn, scaler) < 5
    assert 0 < check_accuracy([batch], model, "cpu", loss_fn=loss_fn)["loss"] < 5


@pytest.fixture
def rates(monkeypatch) -> list[float]:
    """The first group's learning rate in each step of the runs to come."""
    seen, step = [], Muon.step

    def watched(self: Muon) -> None:
        seen.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(Muon, "step", watched)
    return seen


@pytest.mark.parametrize("change, steps", [([], 6), (["--LEARNING_RATE", "0.001"], 6), (["--BATCH_SIZE", "4"], 3)])
def test_a_resumed_run_follows_the_options_in_force(folders, tmp_path, monkeypatch, capsys, rates, change, steps):
    """A third of the second of 4 epochs of 6 steps, and the rest with other options: the schedule ends where it
    should."""
    arguments = [*folders, "--NUM_EPOCHS", "4"]
    stopped(arguments, tmp_path, (1, 2), monkeypatch)
    assert rates == pytest.approx([0.1 * train.warmup_cosine(step / 24) for step in range(8)])
    rates.clear()
    train.main([*arguments, *out(tmp_path, "--LOAD_MODEL", *change)])
    peak = 0.001 if "--LEARNING_RATE" in change else 0.1
    told = "LEARNING_RATE was 0.1 when this run began and is 0.001 now" in capsys.readouterr().out
    assert told == ("--LEARNING_RATE" in change)
    first, total = 8 * steps // 6, 4 * steps
    assert rates == pytest.approx([peak * train.warmup_cosine(step / total) for step in range(first, total)])


def test_until_it_has_seen_the_full_size_a_network_is_validated_at_half(folders, tmp_path, capsys):
    train.main(folders + out(tmp_path, "--NUM_EPOCHS", "4", "--FEATURES", "8", "16"))
    printed = capsys.readouterr().out
    assert printed.count("the network has seen 24x16 so far: its logits are scaled up") == 2
    assert printed.index("epoch 2 of 4") < printed.rindex("24x16") < printed.index("epoch 3 of 4")
    assert printed.count("5 images at 48x32: dice") == 4
    small = nn.Conv2d(3, 1, 1)
    images = torch.rand(2, 3, 5, 9)
    expected = F.interpolate(small(F.interpolate(images, (3, 5), mode="area")), (5, 9), mode="bilinear")
    torch.testing.assert_close(AtSize(small, (3, 5))(images), expected)


def test_compile_compiles_the_training_step_alone(folders, tmp_path):
    """Two sizes, half and full, are two graphs; those that validation and pictures would add were three."""
    script = (
        "import sys, torch, train; torch._dynamo.config.suppress_errors = False\n"
        "compile = torch.compile; torch.compile = lambda model, **words: compile(model, backend='eager', **words)\n"
        "train.main(sys.argv[1:]); print(torch._dynamo.utils.counters['stats']['unique_graphs'], 'graphs')"
    )
    command = [sys.executable, "-c", script, *folders, *out(tmp_path, "--COMPILE")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("2 graphs\n")


def test_the_same_seed_gives_the_same_weights(folders, tmp_path):
    weights = []
    for number, words in enumerate((["--NUM_WORKERS", "0"], ["--NUM_WORKERS", "2"], ["--SEED", "1"])):
        train.main(folders + out(tmp_path / str(number), *words))
        weights.append(end_of(tmp_path / str(number))["state_dict"])
    assert same(weights[0], weights[1]) and not same(weights[0], weights[2])


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


def test_a_script_written_for_the_tutorial_runs_unchanged(tmp_path):
    write_set(tmp_path)
    script = TUTORIAL_SCRIPT.format(tmp_path)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("5 images at 48x32: dice") == 2
    assert (tmp_path / "my_checkpoint.pth.tar").exists()
    names = {path.name for path in (tmp_path / "saved_images").iterdir()}
    assert names == {"grid.png", *(f"{3:012x}_{view:02d}_pred.png" for view in range(1, 6))}


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


def test_a_bug_in_a_transform_keeps_its_traceback_with_workers(folders, tmp_path):
    """torch says "Caught RuntimeError in DataLoader worker process 0", which is no word of a dead worker."""
    script = (
        "import sys, albumentations as A, dataset, train\n"
        "def bug(image, **_): raise RuntimeError('no such axis')\n"
        "train.make_transforms = lambda: (A.Compose([A.Lambda(image=bug)]), dataset.make_transforms()[1])\n"
        "from support.errors import run_script; run_script(train.main)"
    )
    command = [sys.executable, "-c", script, *folders, *out(tmp_path / "out", "--NUM_WORKERS", "2")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "no such axis" in done.stderr and "in bug" in done.stderr
    assert "the transform failed on " in done.stderr and "NUM_WORKERS lower" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="a name that is no UTF-8")
def test_output_that_cannot_be_encoded_ends_no_run(folders, tmp_path):
    for kind, ending in (("images", ".jpg"), ("masks", "_mask.gif")):
        for path in (tmp_path / f"in/val_{kind}").iterdir():
            if path.name.startswith(f"{3:012x}_01"):
                os.rename(path, os.path.join(os.fsencode(path.parent), b"caf\xe9 \xc3\xa9" + ending.encode()))
    command = [sys.executable, str(ROOT / "train.py"), *folders, *out(tmp_path / "out", "--NUM_EPOCHS", "1")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/best_checkpoint.pth.tar").exists()


def test_importing_train_does_nothing_visible(tmp_path):
    check = "assert 'tensorboard' not in sys.modules"  # which takes a moment
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train; {check}"],
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
    assert "batches of 2 images of 48x32: COMPILE finds no compiler (" in done.stderr


def test_scores_at_the_images_own_sizes_are_those_of_predict(folders, tmp_path, capsys):
    train.main([*folders, "--FULL_SIZE_EVERY", "2", "--OUT_DIR", str(tmp_path)])
    lines = re.findall(r"(.*), 5 images at their own sizes: (dice .*)", capsys.readouterr().out)
    assert [which for which, _ in lines] == ["epoch 2", "best checkpoint"]
    checkpoint = ["--CHECKPOINT", str(tmp_path / "best_checkpoint.pth.tar"), "--DEVICE", "cpu"]
    predict.main([folders[5], "--MASK_DIR", folders[7], *checkpoint, "--OUT", str(tmp_path / "masks")])
    assert f"at full size: {lines[1][1]}" in capsys.readouterr().out
    assert (tmp_path / "saved_images" / "full_size" / "scores.csv").read_text().count("\n") == 6

"""Checkpoints as ONNX files and torch.export programs, run by the real onnxruntime."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import export
import predict
from model import UNET
from support.networks import load_network
from support.reading import Reading, read_image

ROOT = Path(__file__).parent.parent
FIXED = [(1, 32, 48), (4, 32, 48)]  # sizes of batches: N, H, W
ANY = [*FIXED, (3, 33, 47), (2, 35, 49), (1, 39, 55), (2, 16, 17), (1, 101, 77)]


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    """A folder with a real run's best_checkpoint.pth.tar, and with classes.pth.tar: no more than the weights of a
    network of three levels that tells four ranges of red apart."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copy(trained / "best_checkpoint.pth.tar", folder)
    (folder / "VAL_images").symlink_to(trained / "val_images")
    torch.manual_seed(0)
    network = UNET(out_channels=4, features=(4, 8, 16))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(100):
        images = F.interpolate(torch.rand(4, 3, 4, 6), (32, 48))
        optimizer.zero_grad()
        F.cross_entropy(network(images), (4 * images[:, 0]).long()).backward()
        optimizer.step()
    torch.save(network.state_dict(), folder / "classes.pth.tar")
    return folder


def exported(folder: Path, name: str, *words: str) -> Path:
    """The ONNX file of a checkpoint in `folder`, with the program beside it."""
    out = folder / f"{'_'.join([name, *words])}.onnx"
    if not out.exists():
        export.main([str(folder / f"{name}.pth.tar"), str(folder / "VAL_images"), *words, "--OUT", str(out)])
    return out


@pytest.mark.parametrize(
    "name, words, sizes",
    [
        ("best_checkpoint", [], ANY),
        ("best_checkpoint", ["--FIXED_SIZE"], FIXED),
        ("classes", [], ANY),
        ("classes", ["--LOGITS"], ANY),
    ],
)
def test_files_give_what_the_checkpoint_gives(folder, name, words, sizes):
    file = exported(folder, name, *words)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (inputs,), (outputs,) = session.get_inputs(), session.get_outputs()
    assert (inputs.name, inputs.type, outputs.type) == ("images", "tensor(uint8)", "tensor(float)")
    assert outputs.name == ("logits" if "--LOGITS" in words else "probabilities")
    assert (inputs.shape[2:] == [32, 48]) == ("--FIXED_SIZE" in words)
    module = torch.export.load(file.with_suffix(".pt2")).module()
    network = load_network(folder / f"{name}.pth.tar", torch.device("cpu"))[0]
    for number, height, width in sizes:
        paths = sorted((folder / "VAL_images").iterdir())[:number]
        images = np.stack([read_image(path, Reading((height, width))) for path in paths])
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        with torch.inference_mode():
            expected = network(torch.from_numpy(images) / 255)
            if "--LOGITS" not in words:
                expected = expected.sigmoid() if name == "best_checkpoint" else expected.softmax(1)
        assert expected.std() > 0.05  # not the same everywhere
        (output,) = session.run(None, {"images": images})
        for values in (torch.from_numpy(output), module(torch.from_numpy(images))):
            torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-4)


def test_metadata_and_what_is_said(folder, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export.main([str(folder / "best_checkpoint.pth.tar")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["model.onnx", "model.pt2"]
    for line in lines:
        assert line.endswith(f"on 5 images of {trained / 'val_images'}")
        assert float(re.search(r" by (\S+) in probability", line)[1]) < 1e-4
    about = onnxruntime.InferenceSession("model.onnx").get_modelmeta().custom_metadata_map
    best_dice = torch.load(folder / "best_checkpoint.pth.tar")["best_dice"]
    assert about == {"classes": "1", "size": "48x32", "best_dice": str(best_dice)} and best_dice > 0.8


@pytest.mark.parametrize("name", ["best_checkpoint", "classes"])
def test_the_script_in_the_readme_needs_neither_torch_nor_this_repository(folder, name, tmp_path):
    (tmp_path / "model.onnx").write_bytes(exported(folder, name).read_bytes())
    image = tmp_path / "image.jpg"
    Image.open(min((folder / "VAL_images").iterdir())).resize((500, 330)).save(image)
    section = (ROOT / "README.md").read_text().partition("## Export\n")[2].partition("\n## ")[0]
    (script,) = re.findall(r"```python\n(.*?)```", section, re.S)
    script += "import sys; assert not {'torch', 'predict', 'support'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    words = ["--CHECKPOINT", folder / f"{name}.pth.tar", "--OUT", tmp_path / "out", "--DEVICE", "cpu"]
    predict.main([str(word) for word in (image, *words)])
    masks = [np.asarray(Image.open(path)) for path in (tmp_path / "mask.png", *(tmp_path / "out").iterdir())]
    # Not the same: predict.py scales logits, and the four classes meet along the image's noise.
    agree = (masks[0] == masks[1]).mean()
    assert len(np.unique(masks[1])) > 1 and agree > (0.95 if name == "classes" else 0.99)


def test_a_file_that_differs_is_not_left_behind(folder, tmp_path, monkeypatch, refused):
    wrong = lambda self, images: self.network(images.float() / 250).sigmoid()  # noqa: E731
    monkeypatch.setattr(export.FromPixels, "forward", wrong)
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_text("an older one")
    error = refused(lambda: export.main([str(folder / "best_checkpoint.pth.tar"), str(folder / "VAL_images")]))
    assert "model.onnx: not written: differs" in error
    assert os.listdir() == ["model.onnx"] and Path("model.onnx").read_text() == "an older one"


@pytest.mark.parametrize(
    "words, missing, told",
    [
        (["best_checkpoint.pth.tar"], ["onnx"], "Run pip install onnx."),
        (["nowhere.pth.tar"], [], "nowhere.pth.tar: no such checkpoint"),
        (["classes.pth.tar", "nowhere"], [], "nowhere: no such file or folder"),
        (["classes.pth.tar"], [], "data/val_images/: no such file or folder. Give images"),
        (["classes.pth.tar", "--OUT", "model.pth"], [], "OUT model.pth: doesn't end in .onnx"),
    ],
)
def test_one_line_on_what_is_missing_or_bad(folder, words, missing, told):
    """In a real process, from which packages are hidden."""
    hide = f"import runpy, sys; sys.modules |= dict.fromkeys({missing}); sys.argv = sys.argv[1:]"
    run = [sys.executable, "-c", f"{hide}; runpy.run_path(sys.argv[0], run_name='__main__')", ROOT / "export.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([*run, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and told in result.stderr
    assert not (folder / "model.onnx").exists()

"""Real files for the tests: small images of a bright ellipse on a dark ground, with exact masks."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS looks once, at its first call of all
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

import numpy as np
import pytest
import torch
from PIL import Image

from support.errors import run_script


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--precision", default="float32", choices=("float32", "bfloat16"), help="of all runs on a CPU")


def pytest_configure(config: pytest.Config) -> None:
    """Have no test depend on the CPU that it meets: neither on the precision that "auto" chooses there, nor on
    its cores. One thread is also the fastest for networks this small, and beside other tests."""
    import train

    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have ignored
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
    train.PRECISION = config.getoption("--precision")
    train.NUM_THREADS = 1
    torch.set_num_threads(1)


def write_pairs(images: Path, masks: Path, names: list[str], size: tuple[int, int] = (64, 96)) -> None:
    """A JPEG and a GIF mask, as Kaggle names them, for each name; the ellipse's place is drawn from the name."""
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: size[0], : size[1]] / np.array(size)[:, None, None]
    for name in names:
        rng = np.random.default_rng(list(name.encode()))
        (cy, cx), (ry, rx) = rng.uniform(0.35, 0.65, 2), rng.uniform(0.15, 0.3, 2)
        mask = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        image = np.where(mask[..., None], rng.integers(150, 250, 3), rng.integers(0, 90, 3))
        image = image + rng.normal(0, 8, image.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(images / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(masks / f"{name}_mask.gif")


def write_set(root: Path) -> None:
    """12 training and 5 validation pairs in `root`, of two cars and a third."""
    train = [f"{car:012x}_{view:02d}" for car in (1, 2) for view in range(1, 7)]
    write_pairs(root / "train_images", root / "train_masks", train)
    write_pairs(root / "val_images", root / "val_masks", [f"{3:012x}_{view:02d}" for view in range(1, 6)])


def set_arguments(root: Path) -> list[str]:
    """Those that name the folders of a set."""
    sides = [(side, kind) for side in ("train", "val") for kind in ("images", "masks")]
    short = {"images": "IMG", "masks": "MASK"}
    dirs = {f"--{side.upper()}_{short[kind]}_DIR": root / f"{side}_{kind}" for side, kind in sides}
    return [word for option, folder in dirs.items() for word in (option, str(folder))]


@pytest.fixture
def folders(tmp_path: Path, pytestconfig: pytest.Config) -> list[str]:
    """Arguments for train.py: 12 training and 5 validation pairs, a small network and small images."""
    # Runs that are compared must repeat bit for bit.
    rest = {"CACHE_DIR": tmp_path / "cache", "DEVICE": "cpu", "PRECISION": pytestconfig.getoption("--precision")}
    rest |= {"NUM_THREADS": 1, "IMAGE_HEIGHT": 32, "IMAGE_WIDTH": 48, "NUM_EPOCHS": 2}
    words = [word for name, value in rest.items() for word in (f"--{name}", str(value))]
    write_set(tmp_path / "in")
    return [*set_arguments(tmp_path / "in"), *words, "--FEATURES", "4", "8"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real run's checkpoints, its images in val_images/ and their masks in val_masks/."""
    import train

    folder = tmp_path_factory.mktemp("trained")
    small = "--IMAGE_HEIGHT 32 --IMAGE_WIDTH 48 --FEATURES 8 16 --NUM_EPOCHS 6 --CACHE_DIR= --DEVICE cpu"
    write_set(folder)
    train.main([*set_arguments(folder), *small.split(), "--OUT_DIR", str(folder)])
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[[Callable[[], Any]], str]:
    """A function that returns the one line on standard error with which its argument ends with status 2."""

    def call(script: Callable[[], Any]) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_script(script)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1
        return error

    return call


@pytest.fixture(scope="session")
def carvana() -> Path:
    """Real images, where the environment variable CARVANA_DATA says that they are."""
    folder = Path(os.environ.get("CARVANA_DATA", ""), "carvana_small")
    if not os.environ.get("CARVANA_DATA") or not folder.is_dir():
        pytest.skip("needs real images: set CARVANA_DATA to the folder that holds carvana_small")
    return folder

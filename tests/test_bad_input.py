"""Every case of the list of bad inputs, by its number: refused (E), warned about (W) or handled (OK).

A case changes a small copy of a data folder with a finished run of one epoch beside it, and then calls
`train.main(argv)`. COVERED names the cases that another test holds.
"""

import contextlib
import ctypes
import hashlib
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import write_pairs
from PIL import Image

import prepare_data
import train
from losses import BCEDiceLoss
from model import UNET
from support.checkpoint import CheckpointWriter
from support.device import count_cores
from support.errors import BadInput, run_script
from support.reading import read_image, read_mask
from support.run import Run

ROOT = Path(__file__).parent.parent
COVERED = {
    **dict.fromkeys((8, 10, 11, 12), "test_reading.py::test_every_kind_of_image_becomes_rgb"),
    **dict.fromkeys((27, 28, 31, 33), "test_reading.py::test_every_way_to_write_a_mask"),
    52: "test_distributed.py::test_a_step_has_an_image_for_each_process",
    61: "test_bad_input.py::test_61_too_little_disk_is_refused_before_training",
    66: "test_checkpoint.py::test_a_flip_in_any_byte_is_detected_or_harmless",
    80: "test_resume.py::test_a_loss_that_is_not_finite_stops_the_run_and_nothing_after_it_is_saved",
    84: "test_resume.py::test_a_signal_to_the_whole_group_saves_and_ends_it",
    85: "test_resume.py::test_a_few_kills",
    86: "test_distributed.py::test_a_run_survives_the_death_of_a_process",
    87: "test_predict.py::test_good_and_bad_images_mixed",
    88: "test_predict.py::test_two_images_for_one_mask",
    89: "test_predict.py::test_the_output_folder_is_an_input_folder",
    90: "test_predict.py::test_a_large_mask_takes_no_float_for_each_pixel",
    91: "test_predict.py::test_a_stopped_run_leaves_whole_files",
    92: "test_predict.py::test_a_stopped_run_leaves_whole_files",
    93: "test_predict.py::test_inputs_and_places_that_cant_be_used",
    94: "test_predict.py::test_masks_have_the_images_own_sizes_and_a_second_run_gives_the_same_bytes",
}


class World:
    """Pairs a to d for training and y, z for validation, 48x32 pixels each, and in `out` a run of one epoch."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, undo: contextlib.ExitStack) -> None:
        self.root, self.out, self.monkeypatch, self.undo = root, root / "out", monkeypatch, undo
        self.images, self.masks = root / "train_images", root / "train_masks"
        self.val_images, self.val_masks = root / "val_images", root / "val_masks"
        self.image, self.mask = self.images / "a.jpg", self.masks / "a_mask.gif"
        self.latest = self.out / "my_checkpoint.pth.tar"

    def argv(self) -> list[str]:
        dirs = {"TRAIN_IMG_DIR": self.images, "TRAIN_MASK_DIR": self.masks, "VAL_IMG_DIR": self.val_images}
        dirs |= {"VAL_MASK_DIR": self.val_masks, "OUT_DIR": self.out, "CACHE_DIR": self.root / "cache"}
        small = "--IMAGE_HEIGHT 32 --IMAGE_WIDTH 48 --FEATURES 4 8 --NUM_EPOCHS 1 --NUM_SAVED_IMAGES 1"
        return [word for name, path in dirs.items() for word in (f"--{name}", str(path))] + small.split()

    def save_image(self, picture: Image.Image, name: str = "a.png", **options: Any) -> None:
        """Put another image in the place of a.jpg."""
        self.image.unlink()
        picture.save(self.images / name, **options)

    def save_mask(self, mask: np.ndarray | Image.Image, name: str = "a_mask.png", **options: Any) -> None:
        """Put another mask in the place of a_mask.gif."""
        self.mask.unlink()
        (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(self.masks / name, **options)

    def change_state(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Write the checkpoint anew, changed."""
        state = torch.load(self.latest, weights_only=True)
        torch.save(changed if isinstance(changed := change(state), dict) else state, self.latest)

    def in_step(self, action: Callable[[], Any]) -> None:
        """Do something during training, after its first step."""
        after_step, done = Run.after_step, []

        def step(run: Run, loss: torch.Tensor) -> None:
            after_step(run, loss)
            if not done:
                done.append(action())

        self.monkeypatch.setattr(Run, "after_step", step)


class Watched(BCEDiceLoss):
    """The loss, which no target but 0 and 1 ever reaches (case 39)."""

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert set(targets.unique().tolist()) <= {0.0, 1.0}
        return super().forward(logits, targets)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    write_pairs(root / "train_images", root / "train_masks", list("abcd"), (32, 48))
    write_pairs(root / "val_images", root / "val_masks", list("yz"), (32, 48))
    train.main(World(root, None, None).argv())
    shutil.rmtree(root / "cache")
    return root


@pytest.fixture
def world(finished, tmp_path, monkeypatch) -> Iterator[World]:
    shutil.copytree(finished, tmp_path / "w")
    monkeypatch.setattr(train, "BCEDiceLoss", Watched)
    with contextlib.ExitStack() as undo:
        yield World(tmp_path / "w", monkeypatch, undo)


def contents(folder: Path) -> dict[str, Any]:
    """What lies in a folder, but for caches and locks."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".lock" and path.parent.name != "cache":
            with contextlib.suppress(OSError):  # a file that the case made unreadable
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def said(error: str) -> list[str]:
    """The lines on standard error that are no progress bars."""
    lines = error.replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip() and not re.search(r"\d+%\||\dit/s|pairs/s|s/it|\?it", line)]


class Case(NamedTuple):
    number: int
    name: str
    verdict: str
    change: Callable[[World], Any]  # may return words for the command line, as a list
    says: str = ""
    then: Callable[[World], None] = lambda world: None


def E(number: int, name: str, change: Callable[[World], Any], says: str) -> Case:
    return Case(number, name, "E", change, says)


def W(number: int, name: str, change: Callable[[World], Any], says: str) -> Case:
    return Case(number, name, "W", change, says)


def OK(number: int, name: str, change: Callable[[World], Any], says: str = "", **then: Any) -> Case:
    return Case(number, name, "OK", change, says, **then)


def flags(number: int, verdict: str, words: str, says: str) -> Case:
    return Case(number, words, verdict, lambda w: words.split(), says)


def image(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
    picture = Image.linear_gradient("L").resize(size)
    return picture.convert(mode)


def square(low: Any = 0, high: Any = 1) -> np.ndarray:
    mask = np.full((32, 48), low, np.uint8)
    mask[8:24, 12:36] = high
    return mask


def with_values(*values: int) -> np.ndarray:
    """A mask with an area of each value."""
    return np.repeat(np.array(values, np.uint8), -(-48 // len(values)))[None, :48].repeat(32, 0)


def soft_edge() -> Image.Image:
    return Image.fromarray(square(0, 255)).resize((24, 16)).resize((48, 32), Image.BICUBIC)


def without_end_marker(w: World) -> None:
    w.save_image(image())
    data = (w.images / "a.png").read_bytes()
    (w.images / "a.png").write_bytes(data[:-12])


def stray_files(w: World) -> None:
    for name in (".DS_Store", "Thumbs.db", "._a.jpg", "note.txt"):
        (w.images / name).write_text("?")


def the_same_folder(w: World) -> list[str]:
    return ["--VAL_IMG_DIR", str(w.images), "--VAL_MASK_DIR", str(w.masks)]


def saved_images_is_a_file(w: World) -> None:
    shutil.rmtree(w.out / "saved_images")
    (w.out / "saved_images").touch()


def resized(path: Path, size: tuple[int, int]) -> None:
    with Image.open(path) as picture:
        picture.resize(size, Image.NEAREST).save(path)


def resize_pair(w: World, size: tuple[int, int]) -> None:
    resized(w.image, size), resized(w.mask, size)


def cut(path: Path, share: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def turned(w: World, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    image(size=size).save(w.image, exif=exif)


def animated(w: World, name: str, masks: bool = False) -> None:
    frames = [Image.fromarray(square(0, high)) for high in (255, 200)]
    (w.save_mask if masks else w.save_image)(frames[0], name, save_all=True, append_images=frames[1:])


def link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def special(path: Path, kind: str) -> None:
    """Put a pipe that nothing writes to, or a device that never ends, in the place of a file."""
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")


@contextlib.contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Let permissions hold for root, too: Linux's root has a capability to ignore them."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, before = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # effective, permitted, ...
    assert libc.capget(header, before) == 0
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


def forbid(w: World, path: Path, mode: int) -> None:
    before = path.stat().st_mode
    path.chmod(mode)
    w.undo.callback(path.chmod, before)
    w.undo.enter_context(as_ordinary_user())


def rename_pair(w: World, name: str, suffixes: tuple[str, str] = (".jpg", "_mask.gif"), mask: str = "") -> None:
    w.image.rename(w.images / f"{name}{suffixes[0]}")
    w.mask.rename(w.masks / f"{mask or name}{suffixes[1]}")


def keep(w: World, count: int) -> None:
    for name in list("abcd")[count:]:
        (w.images / f"{name}.jpg").unlink(), (w.masks / f"{name}_mask.gif").unlink()


def all_masks(w: World, value: int) -> None:
    for path in w.masks.iterdir():
        Image.new("L", (48, 32), value).save(path)


def copy_pair(w: World, name: str) -> None:
    shutil.copy(w.image, w.val_images / f"{name}.jpg")
    shutil.copy(w.mask, w.val_masks / f"{name}_mask.gif")


def use_cars(w: World) -> None:
    rename_pair(w, f"{1:012x}_01")
    (w.val_images / "y.jpg").rename(w.val_images / f"{1:012x}_02.jpg")
    (w.val_masks / "y_mask.gif").rename(w.val_masks / f"{1:012x}_02_mask.gif")


def hold_lock(w: World) -> None:
    code = "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX);"
    code += "print(os.getpid(), file=f, flush=True); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(w.out / ".lock")]
    other = w.undo.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    w.undo.callback(other.kill)
    other.stdout.readline()


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return Path.write_text, (self.victim, "run")


def adding(change: Callable[[World], Any], *words: str) -> Callable[[World], list[str]]:
    def changed(w: World) -> list[str]:
        change(w)
        return list(words)

    return changed


def resume(change: Callable[[World], Any], *words: str) -> Callable[[World], list[str]]:
    """Change something and go on from the checkpoint for another epoch."""
    return adding(change, "--LOAD_MODEL", "--NUM_EPOCHS", "2", *words)


def restate(change: Callable[[dict[str, Any]], Any]) -> Callable[[World], list[str]]:
    return resume(lambda w: w.change_state(change))


def save_on_cuda(w: World) -> None:
    """The checkpoint as one that was saved on CUDA: its tensors' place stands in the pickle."""
    with zipfile.ZipFile(w.latest) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    w.latest.unlink()
    with zipfile.ZipFile(w.latest, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(w.latest, weights_only=True)


def optimizer_of(kind: str) -> dict[str, Any]:
    parameters = train.make_optimizer(UNET(features=[4, 8]), 1e-3).param_groups
    return getattr(torch.optim, kind)(parameters, lr=0.1).state_dict()


def with_one_before(change: Callable[[World], Any]) -> Callable[[World], None]:
    def changed(w: World) -> None:
        shutil.copy(w.latest, w.out / "previous_checkpoint.pth.tar")
        change(w)

    return changed


def malicious(w: World) -> None:
    torch.save({"state_dict": Malicious(w.out / "victim")}, w.latest)


def newer(state: dict[str, Any]) -> None:
    state["format"] = 99


def not_finite(state: dict[str, Any]) -> None:
    state["state_dict"]["final_conv.bias"].fill_(float("nan"))


def add_prefix(state: dict[str, Any]) -> None:
    state["state_dict"] = {f"module._orig_mod.{name}": value for name, value in state["state_dict"].items()}


class Greedy(UNET):
    """A network that asks for more memory than any machine has, as a batch too large does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**50) + super().forward(x)


def fill_disk(w: World) -> None:
    """From now on, have the system break off each write of more than 100 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    w.undo.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
    w.in_step(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1])))


def kill_worker() -> None:
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    for _ in range(600):  # until the loader's handler breaks in
        time.sleep(0.1)


def same_mask(name: str) -> Callable[[World], None]:
    return lambda w: np.testing.assert_array_equal(read_mask(w.masks / name), square())


def same_image(expected: np.ndarray, name: str = "a.png") -> Callable[[World], None]:
    return lambda w: np.testing.assert_array_equal(read_image(w.images / name), expected)


def unlink_images(w: World) -> None:
    w.in_step(lambda: [path.unlink() for path in w.images.iterdir()])


RGB = np.asarray(image())
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HTML = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>"
CASES = [
    # Images
    E(1, "empty", lambda w: w.image.write_bytes(b""), "a.jpg: .*empty file"),
    E(2, "truncated JPEG", lambda w: cut(w.image), "a.jpg: .*truncated"),
    E(2, "truncated GIF", lambda w: cut(w.mask), "a_mask.gif: can't be read as an image"),
    OK(3, "PNG without its end marker", without_end_marker, then=same_image(RGB)),
    OK(4, "PNG named .jpg", lambda w: image().save(w.image, "PNG"), then=same_image(RGB, "a.jpg")),
    E(5, "text", lambda w: w.image.write_text("to do: take an image\n"), "a.jpg: .*text file"),
    E(5, "HTML", lambda w: w.image.write_bytes(HTML), "a.jpg: .*web page"),
    E(5, "git-lfs", lambda w: w.image.write_bytes(LFS), "a.jpg: .*git lfs pull"),
    E(6, "folder", lambda w: (w.images / "x.jpg").mkdir(), "x.jpg: a folder"),
    *(
        E(
            6,
            f"{kind} in place of {what}",
            lambda w, k=kind, what=what: special(getattr(w, what), k),
            "pipe or a dev",
        )
        for kind in ("pipe", "device")
        for what in ("image", "mask")
    ),
    OK(7, "CMYK", lambda w: w.save_image(image("CMYK"), "a.jpg")),
    E(9, "float TIFF", lambda w: w.save_image(image("F"), "a.tif"), "a.tif: pixels of type F"),
    OK(13, "EXIF orientation", lambda w: turned(w, (32, 48))),
    E(13, "EXIF orientation against the mask", lambda w: turned(w, (48, 32)), "a_mask.gif: .*48x32.*32x48.*EXIF"),
    E(14, "animated WebP", lambda w: animated(w, "a.webp"), "a.webp: holds 2 images"),
    E(15, "too many pixels", lambda w: w.save_image(Image.new("1", (18_000, 15_000))), "a.png: .*exceeds limit"),
    E(16, "EPS", lambda w: w.image.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "a.jpg: .*PostScript"),
    E(16, "PSD", lambda w: w.image.write_bytes(b"8BPS\0\1" + bytes(20)), "a.jpg: .*Photoshop"),
    E(17, "1x1", lambda w: resize_pair(w, (1, 1)), "a.jpg: 1x1 pixels, .* 4"),
    E(18, "image below the stride", lambda w: resize_pair(w, (48, 3)), "a.jpg: 48x3 pixels"),
    flags(18, "E", "--IMAGE_HEIGHT 3", "IMAGE_HEIGHT and IMAGE_WIDTH: 3 and 48"),
    OK(19, "odd sizes", adding(lambda w: resize_pair(w, (47, 31)), "--IMAGE_HEIGHT", "31", "--IMAGE_WIDTH", "45")),
    E(20, "no permission", lambda w: forbid(w, w.image, 0), "a.jpg: .*Permission denied"),
    E(21, "broken link", lambda w: link(w.image, w.root / "gone.jpg"), "a.jpg: .*No such file"),
    E(21, "loop of links", lambda w: link(w.image, w.image), "a.jpg: .*symbolic"),
    E(22, "vanishing", resume(unlink_images, "--CACHE_DIR", ""), "[abcd].jpg: .*No such file"),
    # Masks and pairs
    E(23, "no mask", lambda w: w.mask.unlink(), "a.jpg: no mask .*a_mask"),
    W(24, "masks alone", lambda w: (w.image.unlink(), (w.images / "b.jpg").unlink()), "a_mask.gif: .*1 like it"),
    E(25, "two masks", lambda w: Image.new("L", (48, 32)).save(w.masks / "a.png"), "a.jpg: two masks, a_mask.gif"),
    E(26, "sizes differ", lambda w: resized(w.mask, (24, 16)), "a_mask.gif: .*24x16, its image 48x32"),
    E(29, "classes to 2", lambda w: w.save_mask(with_values(0, 1, 2)), "a_mask.png: values up to 2.*NUM_CLASSES"),
    E(29, "classes and 255", lambda w: w.save_mask(with_values(0, 1, 255)), "a_mask.png: values up to 255"),
    E(29, "gray classes", lambda w: w.save_mask(with_values(0, 85, 170, 255)), "a_mask.png: values up to 255"),
    W(30, "JPEG", lambda w: w.save_mask(square(0, 255), "a_mask.jpg", quality=30), "a_mask.jpg: .*black and white"),
    W(30, "soft edge", lambda w: w.save_mask(soft_edge()), "a_mask.png: .*black and white"),
    E(32, "colour", lambda w: w.save_mask(np.dstack([square(0, 255), *[square(0, 0)] * 2])), "png: .*in colour"),
    E(34, "animated GIF", lambda w: animated(w, "a_mask.gif", masks=True), "a_mask.gif: holds 2 images"),
    OK(35, "one mask of background", lambda w: w.save_mask(square(0, 0))),
    E(35, "all of background", lambda w: all_masks(w, 0), "train_masks: all 4 masks are background"),
    W(36, "all foreground", lambda w: w.save_mask(square(255, 255)), "a_mask.png: foreground in every pixel"),
    E(37, "class 1 of 1 is the last", lambda w: w.save_mask(square(0, 2)), "png: values up to 2"),
    E(38, "mask is the image", lambda w: shutil.copy(w.image, w.mask), "a_mask.gif: byte for byte its image"),
    OK(39, "255 in 16 bits", lambda w: w.save_mask(square(0, 255).astype(np.uint16)), then=same_mask("a_mask.png")),
    # Folders
    OK(40, "stray files", stray_files, "4 skipped files"),
    W(41, "subfolder", lambda w: (w.images / "more").mkdir(), "train_images/more: a subfolder"),
    OK(42, "upper-case endings", lambda w: rename_pair(w, "a", (".JPG", "_mask.GIF"))),
    OK(43, "normalisation", lambda w: rename_pair(w, "\u00e9", mask="e\u0301")),
    *(OK(44, repr(name), lambda w, name=name: rename_pair(w, name)) for name in ("a\nb", "\N{AUTOMOBILE}", "-a")),
    E(45, "empty folder", lambda w: [path.unlink() for path in w.images.iterdir()], "train_images: no images"),
    E(46, "missing folder", lambda w: ["--TRAIN_MASK_DIR", f"{w.root}/train_mask"], "train_mask: .*train_masks"),
    E(47, "the same folder", the_same_folder, "train_images: the folder of the training images"),
    E(48, "an image in both", lambda w: copy_pair(w, "x"), "x.jpg: the very image that is also trained on"),
    W(48, "a name in both", lambda w: write_pairs(w.val_images, w.val_masks, ["a"], (30, 40)), "a.jpg: a name"),
    W(49, "a car in both", use_cars, "02.jpg: a view of a car that is also trained on"),
    OK(50, "one image", lambda w: keep(w, 1), "1 training image,"),
    OK(50, "a last batch of one", adding(lambda w: keep(w, 3), "--BATCH_SIZE", "2"), "batches of 2\n.* 1 step;"),
    E(50, "one pixel", adding(lambda w: keep(w, 1), "--IMAGE_HEIGHT", "4", "--IMAGE_WIDTH", "7"), "BatchNorm"),
    flags(51, "OK", "--BATCH_SIZE 16 --MIN_STEPS 1", "batches of 4\n.* 1 step;"),
    # Constants
    *(flags(53, "E", f"--LEARNING_RATE {value}", "LEARNING_RATE: ") for value in ("0", "-1", "nan", "inf")),
    *(flags(54, "E", f"--{name} 0", f"{name}: 0 ") for name in ("BATCH_SIZE", "NUM_EPOCHS", "IMAGE_HEIGHT")),
    flags(55, "E", "--NUM_WORKERS -1", "NUM_WORKERS: -1 "),
    W(55, "too many", lambda w: ["--NUM_WORKERS", str(count_cores() + 1)], "NUM_WORKERS.*cores here"),
    flags(56, "E", "--BATCHSIZE 8", "--BATCHSIZE: .*--BATCH_SIZE"),
    flags(56, "E", "--ACCUMULATE 4", "--ACCUMULATE: .*--ACCUMULATION_STEPS"),
    flags(57, "E", "--MIN_STEPS many", "MIN_STEPS: .*'many'"),
    flags(58, "E", "--DEVICE cuda:99", "DEVICE cuda:99: not available"),
    flags(59, "W", "--DEVICE cpu --PRECISION float16", "PRECISION float16: "),
    E(60, "saved_images", lambda w: forbid(w, w.out / "saved_images", 0o500), "saved_images: .*Permission"),
    E(60, "checkpoint's folder", lambda w: forbid(w, w.out, 0o500), "out: .*Permission"),
    E(62, "saved_images is a file", saved_images_is_a_file, "saved_images: .*File exists"),
    E(63, "a second run", hold_lock, r"out: another run is at work here \(process "),
    # Checkpoints
    E(64, "missing", resume(lambda w: w.latest.unlink()), "in this folder: best_checkpoint.pth.tar"),
    E(65, "empty", resume(lambda w: w.latest.write_bytes(b"")), "my_checkpoint.pth.tar: not a checkpoint"),
    E(65, "truncated", resume(lambda w: cut(w.latest)), "my_checkpoint.pth.tar: not a checkpoint"),
    E(65, "HTML", resume(lambda w: w.latest.write_bytes(HTML)), "my_checkpoint.pth.tar: not a checkpoint"),
    W(
        65,
        "broken, with one before",
        resume(with_one_before(lambda w: cut(w.latest))),
        "previous_checkpoint.pth.tar",
    ),
    E(67, "malicious", resume(malicious), "my_checkpoint.pth.tar: not a checkpoint"),
    E(68, "a module", resume(lambda w: torch.save(UNET(features=[4, 8]), w.latest)), "not a checkpoint"),
    OK(69, "prefixes", restate(add_prefix), "going on after 1 epoch and 0 steps"),
    flags(70, "E", "--LOAD_MODEL --FEATURES 4 6", 'differences in all.* 4 8, "" and 1'),
    E(71, "newer", resume(with_one_before(lambda w: w.change_state(newer))), "my_checkpoint.pth.tar: .*format 99"),
    OK(72, "the tutorial's", restate(lambda s: {k: s[k] for k in ("state_dict", "optimizer")}), "weights alone"),
    OK(72, "another script's", restate(lambda s: {"state_dict": s["state_dict"], "epoch": 90, "arch": "unet"})),
    *(
        E(72, f"without {key}", restate(lambda s, key=key: {k: s[k] for k in s.keys() - {key}}), f"lacks '{key}'")
        for key in ("losses", "best_dice", "generators", "constants")
    ),
    E(72, "other contents", restate(lambda state: state.update(losses=3)), "my_checkpoint.pth.tar: .*'int' object"),
    OK(
        73,
        "weights alone",
        restate(lambda state: state["state_dict"]),
        "weights alone, with which a new run begins",
    ),
    *(
        E(74, kind, restate(lambda s, kind=kind: s.update(optimizer=optimizer_of(kind))), "another optimizer")
        for kind in ("SGD", "Adam")
    ),
    OK(75, "no scaler's state", restate(lambda state: {k: v for k, v in state.items() if k != "scaler"})),
    OK(75, "an empty one", restate(lambda state: state.update(scaler={}))),
    OK(76, "saved on CUDA", resume(save_on_cuda), "going on after 1 epoch and 0 steps"),
    E(77, "NaN", restate(not_finite), "my_checkpoint.pth.tar: its weights are not finite"),
    flags(78, "OK", "--LOAD_MODEL", "NUM_EPOCHS 1 is reached"),
    W(
        79,
        "another image",
        resume(lambda w: write_pairs(w.images, w.masks, ["e"], (32, 48))),
        "images have changed",
    ),
    # During training
    E(81, "out of memory", resume(lambda w: w.monkeypatch.setattr(train, "UNET", Greedy)), "batches of 2 .*memory"),
    E(82, "the disk fills", resume(fill_disk), "the disk is full"),
    E(83, "a worker dies", resume(lambda w: w.in_step(kill_worker), "--NUM_WORKERS", "2"), "process .* died"),
]


def changed(case: Case, world: World) -> list[str]:
    words = case.change(world)
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number:02d} {case.verdict} {case.name}"[:60])
def test_case(case, world, capsys):
    words = changed(case, world)
    before = contents(world.out if case.number == 22 else world.root)
    argv = world.argv() + words
    status = 0
    try:
        run_script(lambda: train.main(argv))
    except SystemExit as stop:
        status = stop.code
    finally:
        world.undo.close()
    printed = capsys.readouterr()
    lines = said(printed.err)
    assert status == (2 if case.verdict == "E" else 0), printed.err
    if case.verdict == "OK":
        assert lines == [] and re.search(case.says, printed.out)
        case.then(world)
        return
    if case.verdict == "E":
        lines = [line for line in lines if not line.startswith("warning: ")]
    assert len(lines) == 1 and re.search(case.says, lines[0]) and lines[0].endswith("."), lines
    if case.verdict == "E":
        after = contents(world.root)
        assert {name: after.get(name) for name in before} == before


def test_61_too_little_disk_is_refused_before_training(tmp_path):
    with torch.device("meta"):  # which has shapes and no memory
        model = UNET(features=[200_000])
    with pytest.raises(BadInput, match=r"GB free, where a run's checkpoints take \d+\.\d\d\. Make room"):
        CheckpointWriter(tmp_path).check_room(model)


def test_everything_wrong_is_told_together(world, capsys):
    write_pairs(world.images, world.masks, [f"n{number:02d}" for number in range(30)], (32, 48))
    for number in range(25):
        (world.images / f"n{number:02d}.jpg").write_bytes(b"" if number % 2 else HTML)
    (world.masks / "n27_mask.gif").unlink()
    copy_pair(world, "x")
    with pytest.raises(BadInput) as error:
        train.main(world.argv())
    lines = str(error.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "27 findings in all, of which these are the first 20"
    assert {line.partition(": ")[0][-7:] for line in lines[1:20]} == {f"n{number:02d}.jpg" for number in range(19)}
    assert "34 images" not in (printed := capsys.readouterr().out) and "8 images with masks" in printed


def check(w: World, capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    prepare_data.main(["check", str(w.images), str(w.masks), "--CACHE_DIR", str(w.root / "cache")])
    return capsys.readouterr().out


def test_the_check_sums_up_and_remembers(world, capsys):
    rename_pair(world, f"{1:012x}_01")
    (world.images / "note.txt").touch()
    first = check(world, capsys)
    assert re.search(
        r"train_images: 4 images with masks; 48x32; foreground \d+\.\d% on average, \d+\.\d% to \d+\.\d%; "
        r"1 car; 1 skipped file\n",
        first,
    )
    status = (broken := world.images / "b.jpg").stat()
    broken.write_bytes(b"?" * status.st_size)
    os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))  # only reading it would tell
    assert check(world, capsys) == first
    os.utime(broken)
    with pytest.raises(BadInput, match="b.jpg: can't be read as an image"):
        check(world, capsys)
    memory = next((world.root / "cache").glob("*.json"))
    memory.write_text("{")  # broken: everything is read again
    with pytest.raises(BadInput, match="b.jpg: can't be read as an image"):
        check(world, capsys)


def test_a_files_trouble_in_a_transform_is_told_with_its_name(world):
    from dataset import CarvanaDataset

    def transform(**_: Any) -> None:
        raise KeyError("image")

    with pytest.raises(RuntimeError, match=r"the transform failed on .*a\.jpg"):
        CarvanaDataset(world.images, world.masks, transform)[0]


def test_every_numbered_case_is_held():
    for test in COVERED.values():
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text()
    held = {case.number for case in CASES} | COVERED.keys()
    assert held == set(range(1, 95))

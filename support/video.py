"""Videos, frame by frame."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from tqdm import tqdm

from support.errors import BadInput, counted, warn
from support.files import writable_folder
from support.visualize import overlay, save_mask

SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"}


def predict_video(path: Path, out: Path, predict: Callable[[np.ndarray], np.ndarray]) -> str:
    """Write the mask of each frame, `out`/NAME/000000.png and on, and `out`/NAME_overlay.mp4, the video with the
    masks' boundaries, whole or not at all. `predict` gives the mask of a frame, uint8 RGB (H, W, 3). Returns a line
    about them. Raises BadInput for a file that OpenCV can't read as a video, or if it can't write the new one."""
    video = cv2.VideoCapture(str(path))
    found, frame = video.read()
    if not found:
        raise BadInput(path, "not a video that OpenCV can read", "Save it as MP4 (H.264) or AVI")
    masks, name = writable_folder(out / path.stem), out / f"{path.stem}_overlay.mp4"
    rate, size = video.get(cv2.CAP_PROP_FPS) or 25, frame.shape[1::-1]
    expected = int(video.get(cv2.CAP_PROP_FRAME_COUNT))  # as its header says
    with (
        TemporaryDirectory(dir=out, prefix=".") as folder,
        tqdm(total=expected or None, desc=path.name, unit=" frames") as bar,
    ):
        part = os.path.join(folder, name.name)  # the ending tells OpenCV the format
        written = cv2.VideoWriter(part, cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        while found:
            image = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            mask = predict(image)
            save_mask(mask, masks / f"{bar.n:06d}.png")
            written.write(cv2.cvtColor(overlay(image, mask), cv2.COLOR_RGB2BGR))
            bar.update()
            found, frame = video.read()
        written.release()
        if cv2.VideoCapture(part).get(cv2.CAP_PROP_FRAME_COUNT) != bar.n:  # OpenCV doesn't tell of a full disk
            raise BadInput(name, "can't be written whole", "Make room, or give another --OUT")
        os.replace(part, name)
    if bar.n < expected - 2:
        finding = f"{counted(bar.n, 'frame')} can be read, where its header tells of {expected}"
        warn(path, finding, "Look whether it is cut short")
    return f"{path}: {counted(bar.n, 'frame')}, masks in {masks}, {name}"

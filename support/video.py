"""Videos, frame by frame."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from support.errors import BadInput, counted
from support.files import writable_folder
from support.reading import Reading
from support.visualize import overlay, save_mask, scale_to_mask

SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"}


def predict_video(
    path: Path,
    out: Path,
    network: Callable[[Tensor], np.ndarray],
    transform: Callable[..., dict],
    reading: Reading,
    threshold: float,
) -> str:
    """Write the mask of each frame, `out`/NAME/000000.png and on, and `out`/NAME_overlay.mp4, the video with the
    masks' boundaries. Returns a line about them. Raises BadInput for a file that OpenCV can't read as a video."""
    if reading.channels not in (1, 3):
        raise BadInput(path, f"RGB, and the checkpoint's images have {reading.channels} channels", "Give images")
    video = cv2.VideoCapture(str(path))
    found, frame = video.read()
    if not found:
        raise BadInput(path, "not a video that OpenCV can read", "Save it as MP4 (H.264) or AVI")
    size, rate = frame.shape[:2], video.get(cv2.CAP_PROP_FPS) or 25
    masks, name = writable_folder(out / path.stem), out / f"{path.stem}_overlay.mp4"
    written = cv2.VideoWriter(str(name), cv2.VideoWriter.fourcc(*"mp4v"), rate, size[::-1])
    bar = tqdm(total=int(video.get(cv2.CAP_PROP_FRAME_COUNT)) or None, desc=path.name, unit=" frames")
    with bar:
        while found:
            image = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            seen = image if reading.channels == 3 else cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
            if reading.size:
                scaled = Image.fromarray(seen).resize(reading.size[::-1], Image.Resampling.BOX)
                values = transform(image=np.atleast_3d(scaled))["image"]
            else:
                values = torch.from_numpy(np.atleast_3d(seen)).permute(2, 0, 1)
            mask = scale_to_mask(network(values[None])[0], size, threshold)
            save_mask(mask, masks / f"{bar.n:06d}.png")
            written.write(cv2.cvtColor(overlay(image, mask), cv2.COLOR_RGB2BGR))
            bar.update()
            found, frame = video.read()
    video.release()
    written.release()
    return f"{path}: {counted(bar.n, 'frame')}, masks in {masks}, {name}"

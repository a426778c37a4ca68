"""Videos, frame by frame."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from support.errors import BadInput, counted
from support.files import writable_folder
from support.visualize import overlay, save_mask, scale_to_mask

SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"}


def predict_video(path: Path, out: Path, logits: Callable[[np.ndarray], np.ndarray], threshold: float) -> str:
    """Write the mask of each frame, `out`/NAME/000000.png and on, and `out`/NAME_overlay.mp4, the video with the
    masks' boundaries. `logits` gives those of a frame, uint8 RGB (H, W, 3); a pixel is foreground if its own is
    above `threshold`. Returns a line about them. Raises BadInput for a file that OpenCV can't read as a video."""
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
            mask = scale_to_mask(logits(image), size, threshold)
            save_mask(mask, masks / f"{bar.n:06d}.png")
            written.write(cv2.cvtColor(overlay(image, mask), cv2.COLOR_RGB2BGR))
            bar.update()
            found, frame = video.read()
    video.release()
    written.release()
    return f"{path}: {counted(bar.n, 'frame')}, masks in {masks}, {name}"

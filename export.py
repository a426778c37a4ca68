"""Write a checkpoint's network as an ONNX file and as a torch.export program, both compared with the checkpoint.

    python export.py best_checkpoint.pth.tar               # model.onnx and model.pt2, compared on validation images
    python export.py best_checkpoint.pth.tar my_images/    # compared on these images
    python export.py best_checkpoint.pth.tar --LOGITS      # logits instead of probabilities

Both take images, uint8 RGB (N, 3, H, W) or of other channels, and give float32 (N, C, H, W): of one class the
probability of foreground, C = 1; of several that of each class. It needs `pip install onnx onnxscript onnxruntime`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dataset import make_transforms
from predict import find_inputs
from support.checkpoint import read_checkpoint
from support.device import count_cores
from support.errors import BadInput, counted, explain_limits, run_script
from support.files import whole_file, writable_folder
from support.networks import load_network
from support.options import ConstantParser
from support.pairs import find_images
from support.reading import AS_IS, Reading, read_image, to_array
from support.sample import render
from support.sliding_window import SlidingWindow

OUT = "model.onnx"  # the ONNX file; the torch.export program lies beside it, as model.pt2
LOGITS = False  # True gives logits; otherwise probabilities, by a sigmoid or, of several classes, a softmax
FIXED_SIZE = False  # True takes images of the checkpoint's size alone, as it is with an encoder; else of any size
TOLERANCE = 1e-4  # difference in probability from the checkpoint; files that differ by more are not left behind


class FromPixels(nn.Module):
    """A network that takes uint8 images, (N, B, H, W) in 0 to 255, and gives probabilities unless told `logits`."""

    def __init__(self, network: nn.Module, logits: bool) -> None:
        super().__init__()
        self.network, self.logits = network, logits

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images.float() / 255)
        return logits if self.logits else to_probabilities(logits)


def to_probabilities(logits: Tensor) -> Tensor:
    """Probabilities, (N, C, H, W), of one class or of several."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def require_extras() -> None:
    """Raise BadInput where packages are missing that nothing but the export needs."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise BadInput(", ".join(missing), "not installed", f"Run pip install {' '.join(missing)}")


def trace(model: FromPixels, reading: Reading) -> ExportedProgram:
    """The program of a model for any number of images of the `reading`'s size or, without one, of any size.

    A trace holds the one branch of UNET.forward that its image takes. That must be the one that interpolates, at
    every level: it changes nothing where sizes agree, and so holds for all. 255 is odd however often it is halved
    and rounded down, as pooling does; 257 however often it is halved and rounded up, as padded strides do.
    """
    dims = {0: Dim.DYNAMIC} if reading.size else {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    images = torch.zeros(2, reading.channels, *(reading.size or (255, 257)), dtype=torch.uint8)
    program = torch.export.export(model, (images,), dynamic_shapes=(dims,))
    if not reading.size:  # no branch is left, but guards against sizes that take the other: a second trace has none
        program = torch.export.export(program.module(check_guards=False), (images,), dynamic_shapes=(dims,))
    return program


def find_real_images(words: list[str], folder: str, reading: Reading) -> tuple[list[np.ndarray], str]:
    """Images, uint8 (H, W, B), to compare on, and what they are: those that `words` name, else the first in the
    folder of validation images, else rendered cars."""
    try:
        paths = find_inputs(words, "", "") if words else find_images(folder)[:8]
    except BadInput:  # without words, the checkpoint may have come to another machine
        if words:
            raise
        cars = [Image.fromarray(render(car, 2 + 5 * car)[0]) for car in range(3)]
        scaled = [to_array(car, replace(reading, channels=3)) for car in cars]
        return [car[..., np.arange(reading.channels) % 3] for car in scaled], "3 rendered cars"
    source = counted(len(paths), "image") + ("" if words else f" of {folder}")
    return [read_image(path, reading) for path in paths], source


def make_batches(images: list[np.ndarray], fixed: bool) -> Iterator[np.ndarray]:
    """Each image alone, then two together; unless the size is `fixed`, also at sizes that are odd at some level."""
    yield from (image[None] for image in images)
    two = np.stack([images[0], images[-1][:, ::-1]])
    for rows, columns in ((0, 0),) if fixed else ((0, 0), (1, 0), (3, 6), (15, 31)):
        yield np.pad(two, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="symmetric")


def compare(network: nn.Module, run: Callable[[np.ndarray], Tensor], batches: Iterable[np.ndarray]) -> float:
    """The largest difference in probability between a network, which is given images as predict.py does it, and
    what `run` makes of the same images."""
    transform, differences = make_transforms()[1], []
    for batch in batches:
        images = torch.stack([transform(image=image)["image"] for image in batch])
        with torch.inference_mode():
            output = run(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))
            differences.append((output - to_probabilities(network(images))).abs().max())
    return float(torch.stack(differences).max())  # NaN if there is one


def load(path: Path) -> Callable[[np.ndarray], Tensor]:
    """What the file at `path` makes of images, uint8 (N, B, H, W): by onnxruntime or, of a program, by torch."""
    if path.stem.endswith(".pt2"):  # NAME.pt2.part
        module = torch.export.load(BytesIO(path.read_bytes())).module()
        return lambda images: module(torch.from_numpy(images))
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = count_cores()  # by itself it counts those that belong to others
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images})[0])


def main(argv: list[str] | None = None) -> None:
    """Export as the constants above and `argv` say."""
    parser = ConstantParser(globals())
    parser.add_argument("checkpoint", help="what train.py wrote, such as best_checkpoint.pth.tar")
    parser.add_argument("images", nargs="*", help="images to compare on, or folders of them")
    options = parser.parse_args(argv)
    require_extras()
    out = Path(options.OUT)
    if out.suffix != ".onnx":
        raise BadInput(f"OUT {out}", "doesn't end in .onnx", "Give another --OUT, say model.onnx")
    checkpoint = read_checkpoint(options.checkpoint)
    network, reading, _ = load_network(options.checkpoint, torch.device("cpu"))
    if isinstance(network, SlidingWindow):  # whoever uses the file makes the windows
        network, reading = network.model, replace(reading, size=(network.crop, network.crop))
        print(f"trained on crops: give it windows of {reading.size[0]} pixels or more at the images' own scale")
    network.to(memory_format=torch.contiguous_format)  # another one would stay in the files
    fixed = options.FIXED_SIZE or hasattr(network, "encoder")  # tracing one of timm's for any size takes minutes
    val_dir = checkpoint.get("constants", {}).get("VAL_IMG_DIR", "data/val_images/")
    images, source = find_real_images(options.images, val_dir, reading)
    height, width = reading.size
    about = {"classes": str(reading.classes.count), "size": f"{width}x{height}"}
    about |= {"range": str(reading.highest)} if reading.highest < AS_IS.highest else {}
    known = {name: checkpoint.get(name) for name in ("best_dice", "commit")}
    about |= {name: str(value) for name, value in known.items() if value not in (None, "", -1)}  # -1: no epoch yet

    writable_folder(out.parent, "Give another --OUT")
    finish = to_probabilities if options.LOGITS else lambda probabilities: probabilities
    with explain_limits(f"writing {out}"), whole_file(out) as onnx, whole_file(out.with_suffix(".pt2")) as pt2:
        model = FromPixels(network, options.LOGITS).eval()
        program = trace(model, reading if fixed else replace(reading, size=None))
        torch.export.save(program, buffer := BytesIO())  # which warns about a file that doesn't end in .pt2
        pt2.write_bytes(buffer.getbuffer())
        names = {"input_names": ["images"], "output_names": ["logits" if options.LOGITS else "probabilities"]}
        onnx_program = torch.onnx.export(program, dynamo=True, verbose=False, **names)
        onnx_program.model.metadata_props.update(about)
        onnx_program.save(onnx)
        for path, name in ((onnx, out), (pt2, out.with_suffix(".pt2"))):
            run = load(path)
            batches = make_batches(images, fixed)
            try:
                difference = compare(network, lambda images, run=run: finish(run(images)), batches)
            except AssertionError as error:  # a guard of the program: the deepest level has but one row or column
                raise BadInput(name, f"not written: {width}x{height} is too small", "Give --FIXED_SIZE") from error
            finding = f"differs from {options.checkpoint} by {difference:.1e} in probability at most, on {source}"
            if not difference <= options.TOLERANCE:
                raise BadInput(name, f"not written: {finding}", "Give --FIXED_SIZE or more TOLERANCE")
            print(f"{name}: {finding}")


if __name__ == "__main__":
    run_script(main)

"""Write a checkpoint's network as an ONNX file and as a torch.export program, both compared with the checkpoint.

    python export.py best_checkpoint.pth.tar               # model.onnx and model.pt2, compared on validation images
    python export.py best_checkpoint.pth.tar my_images/    # compared on these images
    python export.py best_checkpoint.pth.tar --LOGITS      # logits instead of probabilities

Both take images, uint8 RGB (N, 3, H, W) or of other channels, and give float32 (N, C, H, W): of one class the
probability of foreground, C = 1; of several that of each class. It needs `pip install onnx onnxscript onnxruntime`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from glob import glob
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
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
from support.reading import AS_IS, Reading, read_image
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
        logits = self.network(images)
        return logits if self.logits else to_probabilities(logits)


def to_probabilities(logits: Tensor) -> Tensor:
    """Probabilities, (N, C, H, W), of one class or of several."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


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


def make_batches(images: list[np.ndarray], fixed: bool) -> Iterator[np.ndarray]:
    """Each image alone, then two together; unless the size is `fixed`, also at sizes that are odd at some level."""
    yield from (image[None] for image in images)
    two = np.stack([images[0], images[-1][:, ::-1]])
    for rows, columns in ((0, 0),) if fixed else ((0, 0), (1, 0), (3, 6), (15, 31)):
        yield np.pad(two, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="symmetric")


def compare(network: nn.Module, run: Callable[[np.ndarray], Tensor], images: np.ndarray, logits: bool) -> Tensor:
    """The largest difference in probability between a network, which is given images, uint8 (N, H, W, B), as
    predict.py does it, and what `run` makes of them, probabilities or `logits`."""
    transform = make_transforms()[1]
    with torch.inference_mode():
        expected = to_probabilities(network(torch.stack([transform(image=image)["image"] for image in images])))
        output = run(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return ((to_probabilities(output) if logits else output) - expected).abs().max()


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
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise BadInput(", ".join(missing), "not installed", f"Run pip install {' '.join(missing)}")
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
    folders = [folder for folder in (val_dir, *glob("data/sample*/val_images")) if Path(folder).is_dir()]
    paths = find_inputs(options.images) if options.images else find_inputs([*folders, val_dir][:1])[:8]
    source = counted(len(paths), "image") + ("" if options.images else f" of {paths[0].parent}")
    batches = list(make_batches([read_image(path, reading) for path in paths], fixed))

    about = {"classes": reading.classes.count, "size": f"{reading.size[1]}x{reading.size[0]}"}
    if reading.highest < AS_IS.highest:
        about["range"] = reading.highest
    if checkpoint.get("best_dice", -1) >= 0:  # which an epoch has had
        about["best_dice"] = checkpoint["best_dice"]
    writable_folder(out.parent, "Give another --OUT")
    with explain_limits(f"writing {out}"), whole_file(out) as onnx, whole_file(out.with_suffix(".pt2")) as pt2:
        model = FromPixels(network, options.LOGITS).eval()
        program = trace(model, reading if fixed else replace(reading, size=None))
        torch.export.save(program, buffer := BytesIO())  # which warns about a file that doesn't end in .pt2
        pt2.write_bytes(buffer.getbuffer())
        names = {"input_names": ["images"], "output_names": ["logits" if options.LOGITS else "probabilities"]}
        onnx_program = torch.onnx.export(program, dynamo=True, verbose=False, **names)
        onnx_program.model.metadata_props.update({name: str(value) for name, value in about.items()})
        onnx_program.save(onnx)
        for path, name in ((onnx, out), (pt2, out.with_suffix(".pt2"))):
            run = load(path)
            try:
                difference = torch.stack([compare(network, run, batch, options.LOGITS) for batch in batches]).max()
            except AssertionError as error:  # a guard of the program: the deepest level has but one row or column
                finding = f"not written: {about['size']} is too small for any size"
                raise BadInput(name, finding, "Give --FIXED_SIZE") from error
            finding = f"differs from {options.checkpoint} by {difference:.1e} in probability at most, on {source}"
            if not difference <= options.TOLERANCE:  # nor if it is NaN
                raise BadInput(name, f"not written: {finding}", "Give --FIXED_SIZE or more TOLERANCE")
            print(f"{name}: {finding}")


if __name__ == "__main__":
    run_script(main)

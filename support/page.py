"""The page saved_images/index.html: the validation pictures of every epoch, to look at in a browser."""

import json
import os
from pathlib import Path

from PIL import Image

from support.visualize import Picture, classes_in, save_errors, save_mask, to_rgb

TEMPLATE = Path(__file__).with_name("page.html")


def update_page(folder: Path, epoch: int, pictures: list[Picture]) -> None:
    """Add an epoch's pictures, sorted the worst first, to `folder`/index.html.

    `folder`/epoch_NNN/ holds their NAME_pred.png already; beside these go NAME_errors.png and scores.json, from
    which the page is made anew each time. Epochs later than this one, from a run that has gone back to an earlier
    checkpoint, are left out.
    """
    if not pictures:
        return
    originals = folder / "images"
    originals.mkdir(exist_ok=True)
    for picture in pictures:
        Image.fromarray(to_rgb(picture.image)).save(originals / f"{picture.name}.jpg", quality=90)
        save_mask(picture.truth, originals / f"{picture.name}_truth.png")
        save_errors(picture, folder / f"epoch_{epoch:03d}" / f"{picture.name}_errors.png")
    scores = json.dumps({picture.name: round(picture.dice, 6) for picture in pictures}, indent=1)
    (folder / f"epoch_{epoch:03d}" / "scores.json").write_text(scores, encoding="utf-8")

    files = {int(path.parent.name.removeprefix("epoch_")): path for path in folder.glob("epoch_*/scores.json")}
    epochs = {
        number: list(json.loads(path.read_text(encoding="utf-8")).items())
        for number, path in sorted(files.items())
        if number <= epoch
    }
    height, width = pictures[0].truth.shape
    run = {"height": height, "width": width, "epochs": epochs}
    if classes := classes_in(pictures):
        run["classes"] = classes
    data = json.dumps(run).replace("<", r"\u003c")  # no </script>
    part = folder / ".index.html.part"
    part.write_text(TEMPLATE.read_text(encoding="utf-8").replace("RUN", data, 1), encoding="utf-8")
    os.replace(part, folder / "index.html")

"""The notebook runs from its first cell to its last, in a copy of the repository."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import write_pairs

from support.checkpoint import read_checkpoint

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False])
def test_the_notebook_trains_shows_and_predicts(tmp_path, monkeypatch, own):
    import nbclient  # here: only this test needs it
    import nbformat

    repository = tmp_path / "repository"
    (repository / "data").mkdir(parents=True)
    for path in (*ROOT.glob("*.py"), ROOT / "requirements.txt"):
        shutil.copy(path, repository)
    shutil.copytree(ROOT / "support", repository / "support")
    if own:
        write_pairs(repository / "my_images", repository / "my_masks", [f"photo{i}" for i in range(10)])
    monkeypatch.setenv("EPOCHS", "1")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # `!python` is this one
    notebook = nbformat.read(ROOT / "notebook.ipynb", as_version=4)
    resources = {"metadata": {"path": str(repository)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()

    assert read_checkpoint(repository / "my_checkpoint.pth.tar")["epoch"] == 1
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    number = 2 if own else 32
    assert ("10 images with masks" in text) == own == ("training on rendered cars" not in text)
    assert f"{number} of {number} images predicted: predictions/ and predictions/polygons.json" in text
    assert "name,dice,iou,precision,recall,foreground\n" in text
    assert "model.onnx: differs from best_checkpoint.pth.tar by" in text
    assert f"{3 * number + 1} files in all" in text and "Traceback" not in text
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "image/jpeg"} <= kinds


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads((ROOT / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)

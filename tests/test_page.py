"""The page of a run's images: what it is made from, and how it works in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_chromium
from PIL import Image

import train
from support.visualize import FALSE_NEGATIVE, FALSE_POSITIVE, Prediction, save_mask, update_page

HEIGHT, WIDTH = 40, 60
NAMES = ["plain", "100% sûr? #1 <b>&'\"", "x" * 60]
GRAY = 90  # of the images; the thing in them is a green square
BLACK, GROUND, GREEN = (0, 0, 0), (GRAY,) * 3, (0, 255, 0)

# A mask is a square of 20 pixels from (10, 20); a prediction is moved to the right by so many pixels.
SHIFTS = {1: (18, 8, 12), 2: (4, 10, 6), 3: (1, 5, 0)}


def square(shift: int = 0) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:30, 20 + shift : 40 + shift] = True
    return mask


def add_epoch(folder: Path, epoch: int) -> None:
    image = np.full((3, HEIGHT, WIDTH), GRAY / 255, np.float32)
    image[:, square()] = [[0], [1], [0]]
    (folder / f"epoch_{epoch:03d}").mkdir(parents=True)
    rows = []
    for name, shift in zip(NAMES, SHIFTS[epoch], strict=True):
        save_mask(square(shift), folder / f"epoch_{epoch:03d}/{name}_pred.png")
        rows.append(Prediction(name, image, square(), square(shift), dice=(20 - shift) / 20))
    update_page(folder, epoch, sorted(rows, key=lambda row: row.dice))


def in_page(folder: Path) -> dict:
    page = (folder / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'id="run">(.*?)</script>', page, re.DOTALL)[1])


def worst_first(epoch: int) -> list[str]:
    return [name for _, name in sorted(zip(SHIFTS[epoch], NAMES, strict=True), reverse=True)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "saved images"
    for epoch in SHIFTS:
        add_epoch(folder, epoch)
    return folder


def test_a_run_writes_the_page(folders, tmp_path):
    train.main([*folders, "--OUT_DIR", str(tmp_path), "--NUM_SAVED_IMAGES", "3"])
    saved = tmp_path / "saved_images"
    run = in_page(saved)
    assert (run["height"], run["width"], list(run["epochs"])) == (32, 48, ["1", "2"])
    assert run["legend"] == {"missed": "#56b4e9", "too much": "#e69f00"}
    for epoch, scores in run["epochs"].items():
        assert len(scores) == 3 and [score for _, score in scores] == sorted(score for _, score in scores)
        for name, score in scores:
            prediction = np.asarray(Image.open(saved / f"epoch_00{epoch}/{name}_pred.png")) > 0
            truth = np.asarray(Image.open(saved / f"images/{name}_target.png")) > 0
            overlap = 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())
            assert score == pytest.approx(overlap, abs=1e-6)
            errors = np.asarray(Image.open(saved / f"epoch_00{epoch}/{name}_errors.png").convert("RGBA"))
            assert (errors[truth & ~prediction] == (*FALSE_NEGATIVE, 255)).all()
            assert (errors[prediction & ~truth] == (*FALSE_POSITIVE, 255)).all()
            assert (errors[prediction == truth][:, 3] == 0).all()
    assert Image.open(saved / f"images/{name}.jpg").size == (48, 32)
    train.main([*folders, "--OUT_DIR", str(tmp_path / "none"), "--NUM_SAVED_IMAGES", "0", "--NUM_EPOCHS", "1"])
    assert not (tmp_path / "none/saved_images/index.html").exists()


def test_the_page_is_made_from_what_is_there(tmp_path):
    for epoch in SHIFTS:
        add_epoch(tmp_path, epoch)
    whole = (tmp_path / "index.html").read_bytes()
    assert list(in_page(tmp_path)["epochs"]) == ["1", "2", "3"]
    # A run that goes back to its first epoch's checkpoint shows no later ones, and ends with the same page.
    for epoch, left in ((2, ["1", "2"]), (3, ["1", "2", "3"])):
        shutil.rmtree(tmp_path / f"epoch_{epoch:03d}")
        add_epoch(tmp_path, epoch)
        assert list(in_page(tmp_path)["epochs"]) == left
    assert (tmp_path / "index.html").read_bytes() == whole


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("needs Chromium or Chrome, which is not installed")
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(browser, folder) -> Browser:
    browser.open(folder / "index.html", 1280, 900)
    return browser


def text(page: Browser, selector: str) -> str:
    return page.run(f"document.querySelector({selector!r}).textContent")


def value(page: Browser, selector: str) -> str:
    return page.run(f"document.querySelector({selector!r}).value")


def cards(page: Browser, group: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll('#{group} input')].map((input) => input.value)")


def seen(page: Browser, x: float, y: float) -> tuple[int, ...]:
    """The colour on the screen at a pixel of the image."""
    left, top, width, height = page.box(".stage")
    pixel = page.screenshot()[int(top + (y + 0.5) * height / HEIGHT), int(left + (x + 0.5) * width / WIDTH)]
    return tuple(pixel.tolist())


def close(colour: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(colour, expected, strict=True)) <= 12  # JPEG


def test_it_opens_from_the_disk_and_shows_the_worst_first(page):
    requests = [event["params"]["request"]["url"] for event in page.events if "request" in event.get("params", {})]
    assert len(requests) > 9 and all(url.startswith("file:///") for url in requests)
    assert not {"Log.entryAdded", "Runtime.exceptionThrown"} & {event["method"] for event in page.events}
    assert cards(page, "pictures") == worst_first(3) and cards(page, "epochs") == ["1", "2", "3"]
    worst = worst_first(3)[0]
    assert text(page, "#name") == worst and text(page, "#dice") == "epoch 3 of 3 · Dice 0.7500"
    assert text(page, "#pictures label") == f"{worst}0.750"
    assert page.run("[...document.images].every((image) => image.naturalWidth === 60 || image.loading === 'lazy')")


def test_the_slider_uncovers_the_layer_by_mouse(page):
    # The worst of epoch 3 is moved by 5: from 20 to 25 it is missed. It is uncovered to the middle, at 30.
    assert close(seen(page, 22, 20), BLACK) and close(seen(page, 27, 20), GREEN)  # cut out on the left,
    assert close(seen(page, 10, 20), BLACK) and close(seen(page, 50, 20), GROUND)  # the image on the right
    left, top, width, height = page.box(".stage")
    middle = (left + width / 2, top + height / 2)
    page.drag(middle, (left + 0.2 * width, top + height / 2))
    assert value(page, "#uncover") == "20" and close(seen(page, 22, 20), GREEN) and close(seen(page, 10, 20), BLACK)
    page.drag(middle, (left + 1.2 * width, top + height / 2))
    assert value(page, "#uncover") == "100"
    assert close(seen(page, 42, 20), GROUND) and close(seen(page, 50, 20), BLACK)


def test_everything_works_by_keyboard(page):
    page.press("Tab", "End")
    assert page.run("document.activeElement.id") == "uncover" and value(page, "#uncover") == "100"
    page.press("ArrowLeft")
    assert value(page, "#uncover") == "99"

    page.press("Tab", "ArrowRight")
    assert text(page, "#tag") == "target" and close(seen(page, 22, 20), GREEN) and close(seen(page, 42, 20), BLACK)
    page.press("ArrowRight")
    assert text(page, "#tag") == "errors"
    assert seen(page, 22, 20) == FALSE_NEGATIVE and seen(page, 42, 20) == FALSE_POSITIVE
    assert (
        page.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
    )  # where the focus is, is seen

    worst = worst_first(3)[0]
    page.press("Tab", "ArrowLeft")  # an epoch back: the same image, and all sorted anew
    assert (value(page, "#epochs :checked"), value(page, "#pictures :checked")) == ("2", worst)
    assert cards(page, "pictures") == worst_first(2) and text(page, "#dice") == "epoch 2 of 3 · Dice 0.5000"
    assert seen(page, 28, 20) == FALSE_NEGATIVE and seen(page, 48, 20) == FALSE_POSITIVE
    page.press("ArrowLeft")
    assert text(page, "#dice") == "epoch 1 of 3 · Dice 0.6000"
    page.press("Tab", "ArrowDown")
    after = worst_first(1)[(worst_first(1).index(worst) + 1) % 3]
    assert text(page, "#name") == after and text(page, "#dice").startswith("epoch 1 of 3")


def test_images_and_epochs_can_be_clicked(page):
    for place, name in enumerate(worst_first(3), start=1):
        page.click(f"#pictures label:nth-of-type({place})")
        assert text(page, "#name") == name
    page.click("#epochs label:nth-of-type(1)")
    assert text(page, "#dice").startswith("epoch 1 of 3") and text(page, "#name") == name
    page.click("#layers label:nth-of-type(3)")
    assert text(page, "#tag") == "errors"


def test_small_screens_and_dark_ones(browser, folder):
    browser.open(folder / "index.html", 320, 640, "dark")
    assert browser.run("[innerWidth, document.documentElement.scrollWidth]") == [320, 320]
    left, _, width, _ = browser.box(".stage")
    assert left >= 0 and left + width <= 320 and width > 280
    for selector in ("#layers label", "#epochs label", "#pictures label"):
        assert min(browser.box(selector)[2:]) >= 24  # WCAG 2.2, target size
    assert max(browser.screenshot()[2, 2]) < 40  # a dark ground
    browser.click("#pictures label:nth-of-type(3)")
    assert text(browser, "#name") == worst_first(3)[2]


def test_every_control_has_a_name(page):
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = [(node.get("role", {}).get("value"), node.get("name", {}).get("value", "")) for node in nodes]
    names = {name for role, name in roles if role in ("radio", "slider", "group", "image")}
    assert "" not in names
    assert {"Layer", "prediction", "target", "errors", f"Image {worst_first(3)[0]}"} <= names

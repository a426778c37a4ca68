"""The page of a run's pictures: what it is made from, and how it works in a real browser."""

import json
import re
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

# A mask is a square of 20 pixels from (10, 20); a prediction is moved to the right by so many pixels.
SHIFTS = {1: (18, 8, 12), 2: (4, 10, 6), 3: (1, 5, 0)}


def square(shift: int = 0) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:30, 20 + shift : 40 + shift] = True
    return mask


def dice(shift: int) -> float:
    return (20 - shift) / 20


def add_epoch(folder: Path, epoch: int) -> None:
    image = np.full((3, HEIGHT, WIDTH), GRAY / 255, np.float32)
    image[:, square()] = [[0], [1], [0]]
    rows = [
        Prediction(name, image, square(), square(shift), dice(shift))
        for name, shift in zip(NAMES, SHIFTS[epoch], strict=True)
    ]
    (folder / f"epoch_{epoch:03d}").mkdir(parents=True)
    for row in rows:
        save_mask(row.prediction, folder / f"epoch_{epoch:03d}/{row.name}_pred.png")
    update_page(folder, epoch, sorted(rows, key=lambda row: row.dice), set())


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
    assert run.keys() == {"height", "width", "epochs"} and (run["height"], run["width"]) == (32, 48)
    assert list(run["epochs"]) == ["1", "2"]
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
    image = Image.open(saved / f"images/{name}.jpg")
    assert image.size == (48, 32)
    train.main([*folders, "--OUT_DIR", str(tmp_path / "none"), "--NUM_SAVED_IMAGES", "0", "--NUM_EPOCHS", "1"])
    assert not (tmp_path / "none/saved_images/index.html").exists()


def test_the_page_is_made_from_what_is_there(tmp_path):
    for epoch in SHIFTS:
        add_epoch(tmp_path / "one", epoch)
    whole = (tmp_path / "one/index.html").read_bytes()
    assert list(in_page(tmp_path / "one")["epochs"]) == ["1", "2", "3"]
    # A run that goes back to its first epoch's checkpoint shows no later ones, and ends with the same page.
    for epoch, left in ((2, ["1", "2"]), (3, ["1", "2", "3"])):
        for path in (tmp_path / f"one/epoch_{epoch:03d}").iterdir():
            path.unlink()
        (tmp_path / f"one/epoch_{epoch:03d}").rmdir()
        add_epoch(tmp_path / "one", epoch)
        assert list(in_page(tmp_path / "one")["epochs"]) == left
    assert (tmp_path / "one/index.html").read_bytes() == whole


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("needs Chromium or Chrome, which is not installed")
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(browser, folder) -> Browser:
    browser.resize(1280, 900)
    browser.prefer(prefers_color_scheme="light")
    browser.open(folder / "index.html")
    return browser


def text(page: Browser, selector: str) -> str:
    return page.run(f"document.querySelector({selector!r}).textContent")


def cards(page: Browser, group: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll('#{group} input')].map((input) => input.value)")


def chosen(page: Browser, group: str) -> str:
    return page.run(f"document.querySelector('#{group} :checked').value")


def seen(page: Browser, x: float, y: float) -> tuple[int, ...]:
    """The colour on the screen at a pixel of the image."""
    left, top, width, height = page.box(".stage")
    shot = page.screenshot()
    return tuple(
        int(v) for v in shot[int(top + (y + 0.5) * height / HEIGHT), int(left + (x + 0.5) * width / WIDTH)]
    )


def close(colour: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(colour, expected, strict=True)) <= 12  # JPEG


WHITE, GROUND, GREEN = (255, 255, 255), (GRAY,) * 3, (0, 255, 0)


def test_it_opens_from_the_disk_and_shows_the_worst_first(page, folder):
    requests = [event["params"]["request"]["url"] for event in page.events if "request" in event.get("params", {})]
    assert len(requests) > 9 and all(url.startswith("file:///") for url in requests)
    assert [
        event for event in page.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")
    ] == []
    assert cards(page, "pictures") == worst_first(3) and cards(page, "epochs") == ["1", "2", "3"]
    worst = worst_first(3)[0]
    assert text(page, "#name") == worst and text(page, "#dice") == "epoch 3 of 3 · Dice 0.7500"
    assert text(page, "#pictures label span") == f"{worst}0.750"
    assert page.run("[...document.images].every((image) => image.naturalWidth === 60 || image.loading === 'lazy')")


def test_the_slider_uncovers_the_layer_by_mouse(page):
    # The worst of epoch 3 is moved by 5: from 20 to 25 it is missed. It is uncovered to the middle, at 30.
    assert close(seen(page, 22, 20), WHITE) and close(seen(page, 27, 20), GREEN)  # cut out on the left,
    assert close(seen(page, 10, 20), WHITE) and close(seen(page, 50, 20), GROUND)  # the image on the right
    left, top, width, height = page.box(".stage")
    page.drag((left + width / 2, top + height / 2), (left + 0.2 * width, top + height / 2))
    assert page.run("document.querySelector('#uncover').value") == "20"
    assert close(seen(page, 22, 20), GREEN) and close(seen(page, 10, 20), WHITE)
    page.drag((left + width / 2, top + height / 2), (left + 1.2 * width, top + height / 2))
    assert page.run("document.querySelector('#uncover').value") == "100"
    assert close(seen(page, 42, 20), GROUND) and close(seen(page, 50, 20), WHITE)


def test_everything_works_by_keyboard(page):
    page.press("Tab", "End")
    assert page.run("document.activeElement.id") == "uncover"
    assert page.run("document.querySelector('#uncover').value") == "100"
    page.press("ArrowLeft")
    assert page.run("document.querySelector('#uncover').value") == "99"

    page.press("Tab", "ArrowRight")
    assert text(page, "#tag") == "target" and close(seen(page, 22, 20), GREEN) and close(seen(page, 42, 20), WHITE)
    page.press("ArrowRight")
    assert text(page, "#tag") == "errors"
    assert seen(page, 22, 20) == FALSE_NEGATIVE and seen(page, 42, 20) == FALSE_POSITIVE
    outline = page.run("getComputedStyle(document.activeElement.parentElement).outlineStyle")
    assert outline == "solid"  # where the focus is can be seen

    worst = worst_first(3)[0]
    page.press("Tab", "ArrowLeft")  # an epoch back: the same picture, and all sorted anew
    assert (chosen(page, "epochs"), chosen(page, "pictures")) == ("2", worst)
    assert cards(page, "pictures") == worst_first(2) and text(page, "#dice") == "epoch 2 of 3 · Dice 0.5000"
    assert seen(page, 28, 20) == FALSE_NEGATIVE and seen(page, 48, 20) == FALSE_POSITIVE
    page.press("ArrowLeft")
    assert text(page, "#dice") == "epoch 1 of 3 · Dice 0.6000"

    page.press("Tab")
    after = worst_first(1)[(worst_first(1).index(worst) + 1) % 3]
    page.press("ArrowDown")
    assert text(page, "#name") == after and text(page, "#dice").startswith("epoch 1 of 3")


def test_pictures_and_epochs_can_be_clicked(page):
    for place, name in enumerate(worst_first(3), start=1):
        page.click(f"#pictures label:nth-of-type({place})")
        assert text(page, "#name") == name
    page.click("#epochs label:nth-of-type(1)")
    assert text(page, "#dice").startswith("epoch 1 of 3") and text(page, "#name") == name
    page.click("#layers label:nth-of-type(3)")
    assert text(page, "#tag") == "errors"


def test_small_screens_and_dark_ones(page, folder):
    page.resize(320, 640, mobile=True)
    page.prefer(prefers_color_scheme="dark")
    page.open(folder / "index.html")
    assert page.run("[innerWidth, document.documentElement.scrollWidth]") == [320, 320]
    left, _, width, _ = page.box(".stage")
    assert left >= 0 and left + width <= 320 and width > 280
    for selector in ("#layers label", "#epochs label", "#pictures label"):
        assert min(page.box(selector)[2:]) >= 24  # WCAG 2.2, target size
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(21, 21, 21)"
    assert close(seen(page, 10, 20), (0, 0, 0)) and close(seen(page, 25, 12), GREEN)
    page.run("document.querySelector('#epochs').scrollIntoView()")
    page.click("#pictures label:nth-of-type(3)")
    assert text(page, "#name") == worst_first(3)[2]


def test_every_control_has_a_name(page):
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    named = {
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if node.get("role", {}).get("value") in ("radio", "slider", "group", "image")
    }
    assert not [role for role, name in named if not name.strip()]
    names = {name for _, name in named}
    assert {"Layer", "prediction", "target", "errors", f"Image {worst_first(3)[0]}"} <= names

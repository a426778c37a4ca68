import cv2
import numpy as np
import pytest
import torch
from conftest import write_pairs
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dataset import make_transforms
from model import UNET
from support.distributed import Group
from support.reading import Reading
from support.run import archive_results
from train import warmup_cosine
from utils import (
    check_accuracy,
    choose_images,
    count_overlap,
    evaluating,
    get_loaders,
    save_predictions_as_imgs,
    score_counts,
)


class Logits(nn.Module):
    """A model whose logits are its input's first channel."""

    def forward(self, x):
        return x[:, :1]


# By hand, 2x4 pixels each. First: 3 predicted, 4 true, 2 in both: Dice 4/7, IoU 2/5. Second: nothing predicted,
# nothing true: 1 and 1. Third: 2 predicted, none true: 0 and 0. All: 5 predicted, 4 true, 2 in both, 24 pixels.
PREDICTED = torch.tensor([[[1, 1, 1, 0], [0, 0, 0, 0]], [[0, 0, 0, 0]] * 2, [[0, 0, 0, 0], [1, 1, 0, 0]]])
TRUE = torch.tensor([[[0, 1, 1, 1], [1, 0, 0, 0]], [[0, 0, 0, 0]] * 2, [[0, 0, 0, 0]] * 2])


def test_scores_by_hand():
    counts = count_overlap(PREDICTED > 0, TRUE > 0)
    assert counts.tolist() == [[2, 3, 4, 8], [0, 0, 0, 8], [0, 2, 0, 8]]
    expected = {"dice": [4 / 7, 1, 0], "iou": [2 / 5, 1, 0], "precision": [2 / 3, 1, 0], "recall": [2 / 4, 1, 0]}
    assert {name: values.tolist() for name, values in score_counts(counts).items()} == expected
    assert all(values.tolist() == [0] for values in score_counts(torch.tensor([[0, 0, 4, 8]])).values())


def test_a_model_trains_on_after_an_evaluation_that_failed():
    for was_training in (True, False):
        model = Logits().train(was_training)
        with pytest.raises(ValueError), evaluating(model):
            assert not model.training and not torch.is_grad_enabled()
            raise ValueError
        assert model.training == was_training and torch.is_grad_enabled()


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_check_accuracy_by_hand_whatever_the_batch(batch_size, capsys):
    images = (PREDICTED.float() * 8 - 4)[:, None].repeat(1, 3, 1, 1)
    loader = DataLoader(TensorDataset(images, TRUE.float()), batch_size)
    model = Logits().train()
    scores = check_accuracy(loader, model, device="cpu", loss_fn=nn.BCEWithLogitsLoss())
    assert scores["dice"] == pytest.approx((4 / 7 + 1 + 0) / 3)
    assert scores["iou"] == pytest.approx((2 / 5 + 1 + 0) / 3)
    assert scores["micro_dice"] == pytest.approx(2 * 2 / (5 + 4))
    assert scores["micro_iou"] == pytest.approx(2 / (5 + 4 - 2))
    assert scores["precision"] == pytest.approx(2 / 5) and scores["recall"] == pytest.approx(2 / 4)
    assert scores["accuracy"] == pytest.approx((24 - 1 - 2 - 2) / 24)
    right, wrong = np.log1p(np.exp(-4)), np.log1p(np.exp(4))
    assert scores["loss"] == pytest.approx((19 * right + 5 * wrong) / 24, rel=1e-5)
    assert model.training
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "3 images at 4x2: dice 0.5238" in printed


def test_the_learning_rate_rises_and_falls():
    assert [warmup_cosine(progress) for progress in (0, 0.2, 0.6, 1)] == pytest.approx([0.04, 1, 0.5, 0])


def loaders(folder, workers=0, batch_size=4, **options):
    dirs = [folder / name for name in ("train_images", "train_masks", "val_images", "val_masks")]
    write_pairs(dirs[0], dirs[1], [f"t{i}" for i in range(10)])
    write_pairs(dirs[2], dirs[3], [f"v{i}" for i in range(5)])
    return get_loaders(*dirs, batch_size, *make_transforms(), workers, reading=Reading((16, 24)), **options)


def test_a_loaders_worker_uses_one_core(tmp_path):
    """Even if OpenCV has run with threads in this process before."""
    cv2.warpAffine(np.zeros((2000, 2000, 3), np.uint8), np.eye(2, 3), (2000, 2000))
    train, _ = loaders(tmp_path, workers=2)
    train.dataset.transform = lambda image, mask: {"image": cv2.getNumThreads(), "mask": mask}
    assert {number for numbers, _ in train for number in numbers.tolist()} == {1}


def test_an_automatic_batch_leaves_a_small_set_enough_steps_and_a_given_one_stands(tmp_path):
    def sizes(batch_size, **options):
        train, val = loaders(tmp_path, batch_size=batch_size, **options)
        return train.batch_sampler.batch_size, val.batch_size

    automatic = {steps: sizes("auto", min_steps=steps) for steps in (1, 3, 5, 100)}
    assert automatic == {1: (10, 10), 3: (3, 3), 5: (2, 2), 100: (2, 2)}  # of 10 images
    assert sizes("auto", min_steps=100, group=Group(world_size=3)) == (6, 2)
    assert sizes(8, min_steps=100) == (8, 8) and sizes(128) == (10, 10)  # all there are
    # Validation holds no more images at a time than training does.
    assert sizes(8, group=Group(world_size=2)) == (8, 4) and sizes(8, accumulation_steps=4) == (8, 2)


def test_half_of_the_drawn_images_are_the_worst_of_all():
    dice = [0.9, 0.8, 0.7, 0.1, 0.95, 0.6, 0.99, 0.98]
    assert choose_images(dice, 4) == [0, 4, 3, 5]
    assert choose_images(dice, 1) == [0] and choose_images(dice, 0) == []
    assert sorted(choose_images(dice, 99)) == list(range(8))


def test_predictions_are_drawn_with_names_and_the_worst_first(tmp_path):
    _, val = loaders(tmp_path)
    val.dataset.images = ["a.jpg", "a.png", "b.jpg", "c.jpg", "d.jpg"]  # two with one stem
    torch.manual_seed(0)
    model = UNET(features=[2, 4])
    rows, grid = save_predictions_as_imgs(val, model, tmp_path / "saved", "cpu", indices=[2, 1, 0])
    expected = ["a.jpg_pred.png", "a.png_pred.png", "b_pred.png", "grid.png"]
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == expected
    assert [row.dice for row in rows] == sorted(row.dice for row in rows)
    predicted = (model.eval()(val.dataset[2][0][None]) > 0)[0, 0].numpy()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "saved/b_pred.png")), predicted * 255)
    drawn = Image.open(tmp_path / "saved/grid.png")
    assert drawn.size == grid.size and drawn.width > 4 * 240 and drawn.height > 3 * 160


def test_results_are_set_aside_and_never_overwritten(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/.gitkeep").touch()
    places = []
    for run in range(3):
        (tmp_path / "saved/a.png").write_text(str(run))
        places.append(archive_results(tmp_path, ["saved/*.png", "*.tar"]))
    assert archive_results(tmp_path, ["saved/*.png"]) is None
    assert [(place / "saved/a.png").read_text() for place in places] == ["0", "1", "2"]
    assert [path.name for path in (tmp_path / "saved").iterdir()] == [".gitkeep"]

"""What only a CUDA device can show. The other tests that compare runs keep to the CPU."""

import pytest
import torch
from test_resume import STOPS, differences, interrupted, scores_of

import train
from support.checkpoint import read_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
FLOAT16 = ["--DEVICE", "cuda", "--PRECISION", "float16"]


@pytest.mark.parametrize("where", STOPS)
def test_an_interrupted_float16_run_equals_one_that_was_not(folders, tmp_path, monkeypatch, capsys, where):
    arguments = [*folders, *FLOAT16, "--DETERMINISTIC"]
    try:
        train.main([*arguments, "--OUT_DIR", str(tmp_path / "whole")])
        scores = scores_of(capsys.readouterr().out)
        interrupted(arguments, tmp_path / "parts", STOPS[where], monkeypatch)
    finally:
        torch.use_deterministic_algorithms(False)
    assert differences(tmp_path / "whole", tmp_path / "parts") == []
    assert scores_of(capsys.readouterr().out) == scores


def test_without_determinism_it_goes_on_from_the_same_place_and_scale(folders, tmp_path, monkeypatch):
    train.main([*folders, *FLOAT16, "--OUT_DIR", str(tmp_path / "whole")])
    interrupted([*folders, *FLOAT16], tmp_path / "parts", STOPS["four times"], monkeypatch)
    whole, parts = (read_checkpoint(tmp_path / name / "my_checkpoint.pth.tar") for name in ("whole", "parts"))
    assert whole["scaler"] and parts["scaler"] == whole["scaler"]
    assert [parts[name] for name in ("epoch", "step")] == [whole[name] for name in ("epoch", "step")]
    assert parts["best_dice"] == pytest.approx(whole["best_dice"], abs=0.05)

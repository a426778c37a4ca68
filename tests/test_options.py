import pytest

import predict
import prepare_data
from support.errors import BadInput
from support.options import ConstantParser

SCRIPT = '''"""What it is for."""
RATE = 0.5  # 100 % of it
BATCH_SIZE = 4  # images
FEATURES = [1, 2]  # channels
LOAD_MODEL = False  # go on
NUM_WORKERS = "auto"  # processes
FOLDER = "data/"
lower = 3
'''


@pytest.fixture
def parser(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    script = {"__file__": str(tmp_path / "script.py")}
    exec(SCRIPT, script)
    return ConstantParser(script)


def test_values_in_force(parser):
    assert vars(parser.parse_args([])) == {
        "RATE": 0.5,
        "BATCH_SIZE": 4,
        "FEATURES": [1, 2],
        "LOAD_MODEL": False,
        "NUM_WORKERS": "auto",
        "FOLDER": "data/",
    }
    words = "--RATE 1e-3 --BATCH_SIZE=8 --FEATURES 3 4 5 --LOAD_MODEL --NUM_WORKERS 2 --FOLDER x"
    assert list(vars(parser.parse_args(words.split())).values()) == [1e-3, 8, [3, 4, 5], True, 2, "x"]
    assert parser.parse_args(["--LOAD_MODEL", "False"]).LOAD_MODEL is False
    assert parser.parse_args(["--LOAD_MODEL", "True"]).LOAD_MODEL is True


@pytest.mark.parametrize(
    "words", ["a --LOAD_MODEL b --FOLDER x c", "--LOAD_MODEL true a b c", "a b c --LOAD_MODEL"]
)
def test_files_stand_anywhere_among_the_options(parser, words):
    parser.add_argument("files", nargs="+")
    options = parser.parse_args(words.split())
    assert options.files == ["a", "b", "c"] and options.LOAD_MODEL is True
    assert parser.parse_args(["--LOAD_MODEL", "no", "a"]).LOAD_MODEL is False


def test_help_shows_meaning_and_default(parser, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "What it is for." in text
    assert "--BATCH_SIZE images (default: 4)" in text and "--RATE 100 % of it (default: 0.5)" in text


@pytest.mark.parametrize(
    "words, message",
    [
        ("--BATHC_SIZE 8", "--BATHC_SIZE: no such option. Perhaps you meant --BATCH_SIZE."),
        ("--batch_size 8", "--batch_size: no such option. Perhaps you meant --BATCH_SIZE."),
        ("--BATCH 8", "--BATCH: no such option. Perhaps you meant --BATCH_SIZE."),
        ("--qqq", "--qqq: no such option. --help lists the options."),
        ("8", "8: not expected here. --help lists the options."),
        ("--BATCH_SIZE eight", "invalid int value: 'eight'"),
        ("--BATCH_SIZE 2.5", "invalid int value: '2.5'"),
        ("--BATCH_SIZE", "argument --BATCH_SIZE: expected one argument"),
        ("--BATCH_SIZE 0", "BATCH_SIZE: 0 can't be used. Give 1 or more"),
        ("--LOAD_MODEL perhaps", "'perhaps' is neither True nor False"),
        ("--NUM_WORKERS -1", """NUM_WORKERS: -1 can't be used. Give 0 or more, or "auto"."""),
        ("--NUM_WORKERS some", "NUM_WORKERS: 'some' can't be used."),
        ("--FEATURES 1 0", "FEATURES: [1, 0] can't be used."),
    ],
)
def test_refusals_are_one_line_and_status_2(parser, words, message, refused):
    assert message in refused(lambda: parser.parse_args(words.split()))


@pytest.mark.parametrize(
    "script, words, message",
    [
        (prepare_data, "splt a b", "splt: no such command. Perhaps you meant split."),
        (prepare_data, "split a b --shrae 0.3", "--shrae: no such option. Perhaps you meant --share."),
        (prepare_data, "split --sede a", "--sede: no such option. Perhaps you meant --seed."),
        (
            prepare_data,
            "carvana --like_tutorial",
            "--like_tutorial: no such option. Perhaps you meant --like-tutorial.",
        ),
        (prepare_data, "check a b --share 1", "--share: no such option. --help lists the options."),
        (prepare_data, "split a b c", "c: not expected here."),
        (predict, "--OVERLYA", "--OVERLYA: no such option. Perhaps you meant --OVERLAY."),
        (predict, "a.jpg --checkpoint=x", "--checkpoint: no such option. Perhaps you meant --CHECKPOINT."),
        (predict, "a.jpg --THRESHOLD -1", "THRESHOLD: -1.0 can't be used."),
    ],
)
def test_misspelt_words_of_the_other_scripts(script, words, message, refused):
    assert message in refused(lambda: script.main(words.split()))


def test_a_wrong_type_in_the_file_is_refused(parser):
    parser.set_defaults(BATCH_SIZE=None)
    with pytest.raises(BadInput, match="BATCH_SIZE: None can't be used"):
        parser.parse_args([])


def test_line_breaks_in_a_name_stay_one_line():
    assert "\n" not in str(BadInput("a\nb.jpg", "broken", "Remove it"))

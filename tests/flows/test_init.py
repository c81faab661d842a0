import json
import tomllib

import pytest

from engine.config import load
from flows.cli import main as dpo
from tasks import SHARED, STAGES

PAIRS = [{"prompt": f"Question {row}?", "chosen": "Yes, of course.", "rejected": "No."} for row in range(40)]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS), "utf-8")
    return path


def run(capsys, *words):
    code = dpo(["init", *map(str, words)])
    return code, *capsys.readouterr()


def test_a_profile_is_written_that_loads_and_gives_a_reason_for_every_number(tmp_path, data, capsys):
    path = tmp_path / "own" / "mine.toml"
    code, out, _ = run(capsys, path, "--model", "owner/name-7b", "--data", data, "--gpu-gib", 24)
    assert code == 0
    assert "prompt/chosen/rejected; 40 pairs in 40 rows" in out
    assert f"dpo run --profile {path}" in out
    settings = load(str(path), [], STAGES, SHARED)
    assert settings.stages["reference"].quantization == "4bit"  # 14 GiB in half precision
    assert settings.stages["download"].files == str(data)
    numbers = [line for line in path.read_text().splitlines() if "=" in line and not line.startswith(("files", "#"))]
    assert [line for line in numbers if "#" not in line] == []


def test_a_key_that_is_asked_for_is_written_in_place_of_the_proposed_one(tmp_path, data, capsys):
    path = tmp_path / "mine.toml"
    run(capsys, path, "--model", "owner/name", "--data", data, "--gpu-gib", 0, "--set", "train.beta=0.3")
    written = tomllib.loads(path.read_text())
    assert written["train"]["beta"] == 0.3
    assert written["reference"]["dtype"] == "float32"


def test_columns_of_other_names_are_named_in_the_profile(tmp_path, capsys):
    data, path = tmp_path / "pairs.csv", tmp_path / "mine.toml"
    data.write_text("question,good,bad\n" + "".join(f"q{row},yes,no\n" for row in range(5)))
    code, _, err = run(capsys, path, "--model", "owner/name", "--data", data)
    assert code == 1
    assert "download.fields.prompt" in err
    names = [
        word
        for key in ("prompt=question", "chosen=good", "rejected=bad")
        for word in ("--set", f"download.fields.{key}")
    ]
    assert run(capsys, path, "--model", "owner/name", "--data", data, "--gpu-gib", 0, *names)[0] == 0
    assert tomllib.loads(path.read_text())["download"]["fields"]["chosen"] == "good"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mine.yaml"], ".toml"),
        (["mine.toml", "--set", "train.betta=1"], "train.beta"),
        (["mine.toml", "--set", "train.beta=-1"], "train.beta"),
    ],
)
def test_what_does_not_load_is_refused_and_nothing_is_left_behind(tmp_path, data, capsys, words, said):
    name, *more = words
    code, _, err = run(capsys, tmp_path / name, "--model", "owner/name", "--data", data, "--gpu-gib", 0, *more)
    assert code == 1
    assert said in err
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("gib", ["nan", "inf", "-5", "1e300", "much"])
def test_memory_that_no_gpu_has_is_wrong_usage(tmp_path, data, capsys, gib):
    with pytest.raises(SystemExit) as stop:
        run(capsys, tmp_path / "mine.toml", "--model", "owner/name", "--data", data, "--gpu-gib", gib)
    assert stop.value.code == 2
    assert "GiB of one GPU" in capsys.readouterr().err
    assert not (tmp_path / "mine.toml").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("folder.toml", "folder.toml is a folder"),
        ("m" * 300 + ".toml", "no file can have this name"),
        ("pairs.jsonl/mine.toml", "cannot be written"),
    ],
)
def test_a_place_where_no_file_can_lie_is_told_in_words(tmp_path, data, capsys, name, said):
    (tmp_path / "folder.toml").mkdir()
    words = (tmp_path / name, "--model", "owner/name", "--data", data, "--gpu-gib", 0)
    for more in ((), ("--overwrite",)):
        code, out, err = run(capsys, *words, *more)
        assert (code, out) == (1, "")
        assert said in err


def test_a_name_that_is_no_text_is_told_in_words(tmp_path, data, capsys):
    words = ("--model", "owner/\udcff", "--data", data, "--gpu-gib", 0)
    code, _, err = run(capsys, tmp_path / "mine.toml", *words)
    assert code == 1
    assert "what is no text" in err
    assert list(tmp_path.iterdir()) == [data]


def test_what_does_not_load_is_told_with_the_name_that_it_would_have_had(tmp_path, data, capsys):
    path = tmp_path / "mine.toml"
    _, _, err = run(capsys, path, "--model", "owner/name", "--data", data, "--gpu-gib", 0, "--set", "train.beta=-1")
    assert f"where: {path}" in err


def test_the_command_that_comes_next_can_be_typed_as_it_stands(tmp_path, data, capsys):
    path = tmp_path / "my own.toml"
    _, out, _ = run(capsys, path, "--model", "owner/name", "--data", data, "--gpu-gib", 0)
    assert f"dpo run --profile '{path}'" in out


def test_a_file_that_is_there_is_kept_unless_told_otherwise(tmp_path, data, capsys):
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    words = (path, "--model", "owner/name", "--data", data, "--gpu-gib", 0)
    assert run(capsys, *words)[0] == 1
    assert path.read_text() == "mine"
    assert run(capsys, *words, "--overwrite")[0] == 0
    assert path.read_text() != "mine"

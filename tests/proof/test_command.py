import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from proof import __main__ as command
from proof.lane import LaneError
from proof.table import RED, Check


@pytest.mark.parametrize("words", [["--kills", "0"], ["--kills", "-1"], ["--jobs", "0"], ["--kills", "many"]])
def test_a_number_that_proves_nothing_is_refused_in_a_sentence(words, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(words)
    assert stopped.value.code == 2
    assert f"a whole number from 1 is wanted, not '{words[1]}'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told_in_a_sentence(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    assert command.main(["--only", "clock", "--folder", str(tmp_path / "file" / "below")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: nothing can be proven: ")


@pytest.mark.parametrize(
    "error", [LaneError("the nursery ended (1)"), OSError("gone"), subprocess.CalledProcessError(32, "mount")]
)
def test_faults_that_could_not_be_brought_about_are_one_red_line(error, monkeypatch, capsys) -> None:
    def failing(shop):
        raise error

    monkeypatch.setattr(command, "OTHERS", {"clock": failing, "memory": lambda shop: [Check("fine", "green", "")]})
    monkeypatch.setattr(command, "same_as_a_process", lambda shop: [])
    monkeypatch.setattr(command, "told_elsewhere", list)
    checks = command._prove(SimpleNamespace(), ["clock", "memory"], 1)
    assert [(check.name, check.state) for check in checks] == [("clock", RED), ("fine", "green")]
    assert str(error) in capsys.readouterr().out

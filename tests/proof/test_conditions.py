import os
import time
from pathlib import Path

import pytest

from proof.conditions import as_shown, set_clock, show_unchanged


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the functions of the clock back afterwards."""
    for name in ("time", "time_ns", "localtime", "gmtime", "strftime"):
        monkeypatch.setattr(time, name, getattr(time, name))


@pytest.mark.usefixtures("clock")
def test_a_moved_clock_is_wrong_everywhere_and_times_that_are_given_are_not() -> None:
    now, given = time.time(), time.localtime(0)
    set_clock(-86_400)
    assert time.time() == pytest.approx(now - 86_400, abs=60)
    assert time.time_ns() == pytest.approx((now - 86_400) * 1e9, abs=60e9)
    assert time.strftime("%F", time.gmtime()) == time.strftime("%F", time.gmtime(now - 86_400))
    assert time.strftime("%FT%H") in {time.strftime("%FT%H", time.localtime(now - 86_400 + late)) for late in (0, 60)}
    assert time.localtime(0) == given


def test_a_file_that_is_shown_unchanged_seems_so_to_paths_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "stat", os.stat)
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_text("before", "utf-8")
    before = file.stat()
    show_unchanged({str(file.resolve()): as_shown(file)})
    file.write_text("and after", "utf-8")
    os.utime(file, (0, 0))
    seen = file.stat()
    assert (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ctime_ns,
        before.st_ino,
    )
    other.write_text("shown as it is", "utf-8")
    assert other.stat().st_size == 14

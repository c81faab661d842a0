import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.files import write_atomically
from engine.processes import this_process
from engine.runs import RunRecord, root_name
from flows import _processes, _reports, _runs_page
from flows._reports import HEADERS, Server, link_to, note_root, roots

RUN = "20261123-020000-demo"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of artifacts that is known to the server, and a clone of the test's own that has none."""
    for module in (_processes, _reports):
        monkeypatch.setattr(module, "HOME", tmp_path / ".prefect")
    monkeypatch.setattr(_reports, "ROOT", tmp_path / "clone")
    root = tmp_path / "artifacts"
    root.mkdir()
    note_root(root)
    return root


@pytest.fixture
def run(root: Path) -> Callable[..., Path]:
    """Makes a run's folder, with a report unless told otherwise."""

    def run(name: str = RUN, *, report: str | None = "<p>the report</p>", **facts: Any) -> Path:
        folder = root / "runs" / name
        folder.mkdir(parents=True)
        began = {"started_at": "2026-11-23T02:00:00+0000", "began": 1795399200.0, "state": "completed", "seconds": 90.0}
        told: dict[str, Any] = {"overrides": [], "selection": {}, "config": {}, "changed": {}, "environment": {}}
        record = {"id": name, "profile": "demo", "stages": []} | told | began | facts
        (folder / "run.json").write_text(json.dumps(record))
        if report is not None:
            (folder / "report.html").write_text(report)
        return folder

    return run


class Browser:
    """Asks a running server, by paths as they are."""

    def __init__(self, server: Server) -> None:
        self.port = server.server_address[1]

    def __call__(self, path: str, method: str = "GET", host: str | None = None) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host if host is not None else f"127.0.0.1:{self.port}")
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body, dict(answer.getheaders())


@pytest.fixture
def browser() -> Iterator[Browser]:
    with Server(0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield Browser(server)
        server.shutdown()


def address(root: Path, run: str = RUN, file: str = "") -> str:
    return f"/runs/{root_name(str(root.resolve()))}/{run}/{file}"


def test_a_runs_report_opens_with_headers_that_let_it_load_and_run_nothing(
    root: Path, run: Callable[..., Path], browser: Browser
) -> None:
    run()
    status, body, headers = browser(address(root))
    assert (status, body) == (200, "<p>the report</p>")
    assert HEADERS.items() <= headers.items()
    assert headers["Content-Security-Policy"].startswith("default-src 'none';")
    assert "script-src" not in headers["Content-Security-Policy"]


def test_the_head_of_a_page_says_its_length_and_nothing_more(
    root: Path, run: Callable[..., Path], browser: Browser
) -> None:
    run(report="拒绝")
    status, body, headers = browser(address(root), "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, "", "6")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_sent_to_it(root: Path, browser: Browser, method: str) -> None:
    assert browser("/", method)[0] == 501


def test_a_report_against_another_run_opens_under_its_own_name(
    root: Path, run: Callable[..., Path], browser: Browser
) -> None:
    name = "report-against-20261122-020000-demo.html"
    (run() / name).write_text("what changed")
    assert browser(address(root, file=name))[:2] == (200, "what changed")


@pytest.mark.parametrize(
    "path",
    [
        "run.json",
        "report.md",
        "report.html",
        "..%2f..%2fsecret.html",
        "report-against-..%2f..%2f..%2fsecret.html",
        "report-against-/../../../secret.html",
        "../../../secret.html",
        "%00",
        "report-against-x.html",
    ],
)
def test_no_other_file_opens(root: Path, run: Callable[..., Path], browser: Browser, path: str) -> None:
    (root.parent / "secret.html").write_text("a secret")
    run()
    status, body, _ = browser(address(root) + path)
    assert status == 404 and "secret" not in body and "the report" not in body


@pytest.mark.parametrize(
    "path", ["/runs/", "/runs", "//", "/artifacts", "/runs/0123456789abcdef/x/", "/%", "http://x/"]
)
def test_no_folder_is_listed_and_what_is_not_there_is_said(root: Path, browser: Browser, path: str) -> None:
    status, body, _ = browser(path)
    assert (status, "There is no such page" in body) == (404, True) or path == "//"


@pytest.mark.parametrize("place", ["report.html", "report-against-x.html"])
def test_no_link_leads_out_of_a_run(root: Path, run: Callable[..., Path], browser: Browser, place: str) -> None:
    (root.parent / "secret.html").write_text("a secret")
    (run(report=None) / place).symlink_to(root.parent / "secret.html")
    assert "a secret" not in browser(address(root, file="" if place == "report.html" else place))[1]


def test_a_folder_of_a_run_that_is_a_link_is_none(root: Path, run: Callable[..., Path], browser: Browser) -> None:
    folder = run()
    folder.rename(root.parent / "elsewhere")
    folder.symlink_to(root.parent / "elsewhere")
    assert browser(address(root))[0] == 404


def test_what_is_no_file_is_not_waited_for(root: Path, run: Callable[..., Path], browser: Browser) -> None:
    os.mkfifo(run() / "report-against-x.html")
    assert browser(address(root, file="report-against-x.html"))[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", ""])
def test_a_page_of_somebody_else_whose_name_leads_here_reads_nothing(
    root: Path, run: Callable[..., Path], browser: Browser, host: str
) -> None:
    run()
    for path in ("/", address(root)):
        status, body, _ = browser(path, host=host.format(port=browser.port))
        assert status == 421 and "report</p>" not in body and RUN not in body
    assert browser("/", host=f"localhost:{browser.port}")[0] == 200


def test_it_listens_on_this_machine_alone() -> None:
    with Server(0) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_the_page_of_all_runs_has_the_latest_first_with_what_tells_them_apart(
    root: Path, run: Callable[..., Path], browser: Browser
) -> None:
    run()
    overrides = ["train.beta=0.2", "runtime.threads=1"]
    run("20261124-020000-mine", profile="mine", state="failed", overrides=overrides, seconds=None)
    (run("20261122-020000-broken") / "run.json").write_text("{")
    status, body, _ = browser("/")
    assert status == 200
    assert body.index(address(root, "20261124-020000-mine")) < body.index(address(root))
    assert "mine" in body and "failed" in body and "train.beta=0.2" in body and "2026-11-23 02:00" in body
    assert "1 min 30 s" in body and "runtime.threads" not in body and "broken" not in body


def test_the_page_of_many_runs_says_that_it_leaves_some_out(
    root: Path, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_runs_page, "SHOWN", 2)
    for day in (21, 22, 23):
        run(f"202611{day}-020000-demo")
    page = _runs_page.runs_page(roots())
    assert "20261121" not in page and "20261123" in page and "1 earlier runs" in page


def test_a_run_whose_process_is_gone_is_not_called_running(
    root: Path, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(state="running")
    monkeypatch.setattr(_runs_page, "is_gone", lambda process: False)
    assert ">running<" in _runs_page.runs_page(roots())
    monkeypatch.setattr(_runs_page, "is_gone", lambda process: True)
    assert ">crashed<" in _runs_page.runs_page(roots())


@pytest.mark.parametrize("verdict", [("passed the gate", "good"), ("did not pass the gate", "bad")])
def test_the_page_of_all_runs_tells_by_word_and_colour_what_the_gate_said(
    root: Path, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, verdict: tuple[str, str]
) -> None:
    run()
    monkeypatch.setattr(_runs_page, "badge", lambda record: verdict)
    assert f'<span class="state {verdict[1]}">{verdict[0]}</span>' in _runs_page.runs_page(roots())


HOSTILE = "<script>alert(1)</script>\"'><a href=javascript:x>\u202e{{ 7*7 }}"


def test_hostile_text_in_a_record_shows_as_text(root: Path, run: Callable[..., Path], browser: Browser) -> None:
    run(profile=HOSTILE, started_at=HOSTILE, state=HOSTILE, overrides=[HOSTILE])
    body = browser("/")[1]
    assert "<script" not in body and "<a href=javascript" not in body and "\u202e" not in body
    assert "&lt;script&gt;" in body and "{{ 7*7 }}" in body


@given(st.text(max_size=40))
def test_any_name_of_a_run_opens_under_the_address_it_is_given(name: str) -> None:
    from urllib.parse import unquote

    path = _runs_page.address_of("0123456789abcdef", name)
    found = _reports._OF_RUN.fullmatch(unquote(path))
    assert path.isascii() and " " not in path
    if name and "/" not in name and "\n" not in name:
        assert found is not None and found[2] == name


def test_a_missing_report_is_made_and_stays(root: Path, run: Callable[..., Path], browser: Browser) -> None:
    folder = run(report=None, state="failed", error="the margins are not zero")
    status, body, _ = browser(address(root))
    assert status == 200 and "the margins are not zero" in body
    assert (folder / "report.html").is_file()


class Pen:
    """Draws pages that tell how many there were, instead of the real ones.

    Attributes:
        drawn: the states that the records told of.
        hand: what happens while a page is drawn.
        at_once: how many were drawn at the same time, at most.
    """

    def __init__(self) -> None:
        self.drawn: list[str] = []
        self.hand: Callable[[], object] = lambda: None
        self.at_once, self._busy, self._counting = 0, 0, threading.Lock()

    def __call__(self, record: RunRecord) -> str:
        with self._counting:
            self._busy += 1
            self.at_once = max(self.at_once, self._busy)
        self.hand()
        with self._counting:
            self._busy -= 1
            self.drawn.append(record.state)
            return f"page {len(self.drawn)}, {record.state}"


@pytest.fixture
def pen(monkeypatch: pytest.MonkeyPatch) -> Pen:
    """Draws every page in a server that has drawn none yet."""
    pen = Pen()
    monkeypatch.setattr("engine.reports.run.draw_report", pen)
    monkeypatch.setattr(_reports, "_drawn", {})
    return pen


def rewrite(folder: Path, **facts: Any) -> None:
    """Says something else in a run's record."""
    kept = json.loads((folder / "run.json").read_text())
    write_atomically(folder / "run.json", json.dumps(kept | facts))


def all_at_once(ask: Callable[[str], Any], asked: list[str]) -> list[Any]:
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(ask, asked))


def test_the_report_of_a_run_under_way_is_drawn_and_not_written(
    root: Path, run: Callable[..., Path], browser: Browser, pen: Pen
) -> None:
    folder = run(state="running", report=None)
    assert browser(address(root))[1] == "page 1, running"
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    rewrite(folder, state="completed")
    assert browser(address(root))[1] == "page 2, completed"
    assert (folder / "report.html").read_text() == "page 2, completed"


def test_a_run_that_ends_while_it_is_looked_at_keeps_the_report_that_it_wrote(
    root: Path, run: Callable[..., Path], browser: Browser, pen: Pen
) -> None:
    folder = run(state="running", report=None)

    def end() -> None:
        rewrite(folder, state="completed")
        (folder / "report.html").write_text("the last word")

    pen.hand = end
    assert browser(address(root))[1] == "page 1, running"
    assert browser(address(root))[1] == (folder / "report.html").read_text() == "the last word"


def test_a_page_is_drawn_again_when_it_is_old_and_the_record_says_something_new(
    root: Path, run: Callable[..., Path], browser: Browser, pen: Pen, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(state="running")

    def look() -> str:
        return browser(address(root))[1]

    assert look() == "page 1, running"
    rewrite(folder, profile="another")
    assert look() == "page 1, running", "it is young"
    monkeypatch.setattr(_reports, "KEPT_SECONDS", 0.0)
    assert look() == look() == "page 2, running", "nothing is new the second time"


def test_reloading_a_page_that_is_being_drawn_waits_for_it_and_draws_no_other(
    root: Path, run: Callable[..., Path], browser: Browser, pen: Pen
) -> None:
    run(state="running")
    pen.hand = lambda: time.sleep(0.2)
    pages = all_at_once(browser, [address(root)] * 4)
    assert {body for _, body, _ in pages} == {"page 1, running"}


def test_no_two_pages_are_drawn_at_once(root: Path, run: Callable[..., Path], browser: Browser, pen: Pen) -> None:
    names = [f"20261123-02000{number}-demo" for number in range(4)]
    for name in names:
        run(name, state="running")
    pen.hand = lambda: time.sleep(0.05)
    all_at_once(browser, [address(root, name) for name in names])
    assert (len(pen.drawn), pen.at_once) == (4, 1)


def test_a_server_that_runs_for_long_keeps_a_few_pages_only(
    root: Path, run: Callable[..., Path], pen: Pen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reports, "KEPT", 2)
    folders = [run(f"20261123-02000{number}-demo", state="running") for number in range(3)]
    for folder in folders:
        _reports.report(root, folder.name, "")
    assert list(_reports._drawn) == folders[1:]


def test_the_head_of_a_page_that_is_not_drawn_yet_draws_nothing(
    root: Path, run: Callable[..., Path], browser: Browser, pen: Pen
) -> None:
    run(state="running")
    status, body, headers = browser(address(root), "HEAD")
    assert (status, body, pen.drawn) == (200, "", [])
    assert "Content-Length" not in headers
    browser(address(root))
    assert browser(address(root), "HEAD")[2]["Content-Length"] == str(len("page 1, running"))


@pytest.fixture
def dead() -> dict[str, Any]:
    """What a record says of a process that is gone."""
    here = this_process()
    boot, space, _ = here.born.split(" ")
    return {
        "state": "running",
        "seconds": None,
        "pid": here.pid,
        "host": here.host,
        "process_born": f"{boot} {space} 1",
    }


def test_list_and_page_agree_about_a_run_that_was_killed(
    root: Path, run: Callable[..., Path], browser: Browser, dead: dict[str, Any]
) -> None:
    folder = run(report="<p>as it was while it ran</p>", **dead)
    listed = browser("/")[1]
    page = browser(address(root))[1]
    assert '<span class="state bad">crashed</span>' in listed
    assert "<title>crashed · Run" in page and "is gone without a word" in page
    assert (RunRecord.load(folder).state, (folder / "report.html").read_text()) == ("crashed", page)


def test_what_was_drawn_of_a_run_is_not_shown_after_it_was_killed(
    root: Path, run: Callable[..., Path], browser: Browser, dead: dict[str, Any]
) -> None:
    folder = run(report=None, state="running", seconds=None)
    assert "<title>running" in browser(address(root))[1]
    rewrite(folder, **dead)
    assert "<title>crashed" in browser(address(root))[1]


def test_a_killed_run_whose_record_cannot_be_changed_has_no_page_that_calls_it_running(
    root: Path, run: Callable[..., Path], browser: Browser, dead: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reports, "mark_crashed", lambda root: [])
    run(report="<p>as it was while it ran</p>", **dead)
    assert "<title>crashed" in browser(address(root))[1]


def test_a_page_that_cannot_be_kept_is_shown(
    root: Path, run: Callable[..., Path], browser: Browser, pen: Pen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("a folder to read only")

    run(report=None)
    monkeypatch.setattr(_reports, "write_atomically", refuse)
    assert [browser(address(root))[1] for _ in range(2)] == ["page 1, completed", "page 2, completed"]


def test_a_report_that_cannot_be_made_is_shown_as_the_text_that_is_there(
    root: Path, run: Callable[..., Path], browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(record: RunRecord) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("engine.reports.run.draw_report", broken)
    folder = run(report=None)
    assert browser(address(root))[0] == 404
    (folder / "report.md").write_text("# Run\n<script>alert(1)</script>")
    status, body, _ = browser(address(root))
    assert status == 200 and "# Run\n&lt;script&gt;" in body


def test_only_folders_that_were_noted_and_are_there_are_served(root: Path, tmp_path: Path) -> None:
    notes = tmp_path / ".prefect" / "roots"
    (notes / "0123456789abcdef").write_text(str(tmp_path))  # a name that does not fit
    (notes / root_name("artifacts")).write_text("artifacts")  # a path that depends on where one stands
    (notes / "\u202e").mkdir()
    note_root(tmp_path / "gone")
    assert roots() == {root_name(str(root)): root}
    (tmp_path / "clone" / "artifacts").mkdir(parents=True)
    assert len(roots()) == 2, "the clone's own needs no note"


def test_a_folder_that_cannot_be_noted_is_a_warning(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(_reports, "HOME", tmp_path / "file")
    note_root(root)
    assert "will not be served" in caplog.text
    assert roots() == {}


def test_a_run_has_a_link_only_while_its_report_is_served(
    root: Path, run: Callable[..., Path], browser: Browser
) -> None:
    record = RunRecord.load(run("20261123-020000-拒 x"))
    assert link_to(record) == ""
    _processes.REPORTS.remember(os.getpid(), port=browser.port)
    link = link_to(replace(record, id="another"))  # what a record says of itself leads nowhere else
    assert link.startswith(f"http://127.0.0.1:{browser.port}/runs/") and link.isascii()
    assert browser(link.partition(str(browser.port))[2])[1] == "<p>the report</p>"


def test_a_port_that_is_taken_is_an_error_in_words(
    browser: Browser, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["_reports", "--port", str(browser.port)])
    assert _reports.main() == 1
    assert f"nothing can listen on port {browser.port}" in capsys.readouterr().err

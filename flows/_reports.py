"""The server of the runs' reports: a page of all runs, and the report of each, for the browsers of this machine alone.

`python -m flows._reports [--port N]`: what `make deploy` starts beside Prefect's server, whose pages may link to http
addresses and not to files. It answers GET and HEAD, looks every address up among the runs that it knows of, and opens
no file but their reports. Flows note the artifacts folders that they write into, in `.prefect/roots/`.

The page of a run under way is drawn for who looks, kept for a while, and never written: the run writes its own.
"""

import argparse
import logging
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from engine.errors import PipelineError, StoreError
from engine.files import mark, write_atomically
from engine.runs import PAGE, RECORD, REPORT, RunRecord, all_runs, mark_crashed, root_name
from flows._processes import HOME, REPORTS, ROOT
from flows._runs_page import address_of, message_page, runs_page, was_killed

HOST, PORT = "127.0.0.1", 4201
IDLE_SECONDS = 20.0  # a browser that says nothing for so long is let go
KEPT_SECONDS = 10.0  # at least, before a page is drawn again: who reloads it takes time from what trains
KEPT = 8  # pages
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_OF_RUN = re.compile(r"/runs/([0-9a-f]{16})/([^/]+)/(report-against-[^/]+\.html)?")
_drawing = threading.Lock()  # what draws the pictures is not made for two at once
_drawn: "dict[Path, Drawn]" = {}  # the latest pages of runs under way, by their folders
_log = logging.getLogger("dpo.reports")


@dataclass(frozen=True)
class Drawn:
    """A page, the mark of the record that it was drawn from, and the clock's time when it was done."""

    page: bytes
    record: list[int | str]
    done: float

    def holds(self, folder: Path) -> bool:
        """Whether it will do: the record is as it was, or the page young."""
        return time.monotonic() - self.done < KEPT_SECONDS or mark(folder / RECORD) == self.record


def main() -> int:
    """The command line; ends when it is told to."""
    parser = argparse.ArgumentParser(prog="python -m flows._reports", description="the server of the runs' reports")
    parser.add_argument("--port", type=int, default=PORT, help="default: %(default)s")
    port = parser.parse_args().port
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    try:
        with Server(port) as server:
            server.serve_forever()
    except OSError as error:
        print(PipelineError(f"nothing can listen on port {port}", found=str(error), fix="--port N"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def note_root(root: Path) -> None:
    """Lets the server know of an artifacts folder. That it could not be noted is a warning."""
    text = str(root.resolve())
    note = _notes() / root_name(text)
    try:
        if not note.is_file() or note.read_text("utf-8", "replace") != text:
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(note, text)
    except (OSError, ValueError) as error:
        _log.warning("the reports of runs in %s will not be served: %s", root, error)


def link_to(record: RunRecord) -> str:
    """The address that the report of a run has now; empty where nothing serves it on this machine."""
    port, root = REPORTS.state().get("port"), record.folder.parent.parent.resolve()
    return f"http://{HOST}:{port}{address_of(root_name(str(root)), record.folder.name)}" if port else ""


def roots() -> Mapping[str, Path]:
    """The artifacts folders that are served and there, by the name that they have in addresses."""
    found = {}
    for text in (str((ROOT / "artifacts").resolve()), *_noted()):
        if (root := Path(text)).is_absolute() and root.is_dir():
            found[root_name(text)] = root
    return found


def report(root: Path, run: str, name: str, *, draw: bool = True) -> bytes | None:
    """The bytes of a report; None where the run or the report is not there.

    Args:
        run: an id, as an address has it; only what is found among the runs of `root` is opened.
        name: the report against another run; empty for the run's own, which is drawn where it is not at hand.
        draw: False has nothing for one that would have to be drawn, as empty bytes.
    """
    folder = next((folder for folder in all_runs(root) if folder.name == run), None)
    if folder is None or folder.is_symlink() or folder.parent.is_symlink():
        return None
    if name:
        return _content(folder, name)
    if (page := _at_hand(folder)) is not None:
        return page
    return (_made(folder) or _content(folder, PAGE) or _text(folder)) if draw else b""


def _content(folder: Path, name: str) -> bytes | None:
    """A file's bytes, if it is one and no link to one; nothing is waited for."""
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            return file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except (OSError, ValueError):
        return None


def _at_hand(folder: Path) -> bytes | None:
    """The page that needs no drawing: of a run that is over the file, of one under way what was drawn lately."""
    try:
        record = RunRecord.load(folder)
        if record.state == "running":
            kept = None if was_killed(record) else _drawn.get(folder)
            return kept.page if kept and kept.holds(folder) else None
    except (StoreError, OSError):
        pass
    return _content(folder, PAGE)


def _made(folder: Path) -> bytes | None:
    """The page drawn, by this request or one that it waited for; None where it cannot be."""
    try:
        with _drawing:
            return _at_hand(folder) or _draw(folder)
    except Exception as error:  # then what is there already is shown
        _log.warning("the report of run %s could not be made: %s: %s", folder.name, type(error).__name__, error)
        return None


def _draw(folder: Path) -> bytes:
    """Draws the page as the record is now; a run that is over, and has no page, keeps it."""
    from engine.reports.run import draw_report

    seen, record = mark(folder / RECORD), RunRecord.load(folder)
    if was_killed(record):
        mark_crashed(folder.parent.parent)
        record = RunRecord.load(folder)  # says so now, unless it cannot be written
        record = record if record.state == "crashed" else replace(record, state="crashed")
    page = draw_report(record).encode("utf-8", "replace")
    if record.state == "running":
        _keep(folder, Drawn(page, seen, time.monotonic()))
    elif not os.path.lexists(folder / PAGE):
        _write(folder / PAGE, page)
    return page


def _keep(folder: Path, drawn: Drawn) -> None:
    _drawn.pop(folder, None)  # so that the latest stands last
    _drawn[folder] = drawn
    for oldest in list(_drawn)[:-KEPT]:
        del _drawn[oldest]


def _write(path: Path, page: bytes) -> None:
    """Keeps a page for the next time; where it cannot be kept it is drawn again."""
    try:
        write_atomically(path, page.decode())
    except OSError as error:
        _log.warning("the page %s was not written: %s", path, error)


def _text(folder: Path) -> bytes | None:
    """The report in plain text, where there is no better one."""
    text = _content(folder, REPORT)
    return None if text is None else message_page(folder.name, text=text.decode("utf-8", "replace")).encode()


class Server(ThreadingHTTPServer):
    """Listens on this machine alone. Raises OSError when the port is taken."""

    daemon_threads = True
    allow_reuse_port = False  # two clones at once would share it, on some versions of Python

    def __init__(self, port: int) -> None:
        super().__init__((HOST, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Writes down what went wrong with a request, unless the browser went away."""
        if not isinstance(error := sys.exception(), ConnectionError | TimeoutError):
            _log.error("a request failed", exc_info=error)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    timeout = IDLE_SECONDS
    server_version, sys_version = "dpo", ""

    def do_GET(self) -> None:
        """Answers with a page."""
        status, page = self._answer()
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if page:
            self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    do_HEAD = do_GET  # noqa: N815 — as http.server calls it

    def _answer(self) -> tuple[HTTPStatus, bytes]:
        if not self._is_for_us():  # a name of somebody else's that leads here would let his pages read ours
            return HTTPStatus.MISDIRECTED_REQUEST, b"This server answers to 127.0.0.1 and localhost only.\n"
        path = unquote(self.path.partition("?")[0])
        if path == "/":
            return HTTPStatus.OK, runs_page(roots()).encode("utf-8", "replace")
        if (asked := _OF_RUN.fullmatch(path)) and (root := roots().get(asked[1])):
            page = report(root, asked[2], asked[3] or "", draw=self.command != "HEAD")
            if page is not None:
                return HTTPStatus.OK, page
        return HTTPStatus.NOT_FOUND, message_page("Not here", "There is no such page.").encode()

    def _is_for_us(self) -> bool:
        port = self.connection.getsockname()[1]
        return self.headers.get_all("Host", []) in ([f"{HOST}:{port}"], [f"localhost:{port}"])

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: who looks at what is nobody's business."""


def _notes() -> Path:
    return HOME / "roots"


def _noted() -> Iterator[str]:
    """What the notes say; one whose name does not fit was not written by `note_root`."""
    try:
        notes = sorted(_notes().iterdir())
    except OSError:
        return
    for note in notes:
        try:
            text = note.read_text("utf-8")
        except (OSError, ValueError):
            continue
        if note.name == root_name(text):
            yield text


if __name__ == "__main__":
    sys.exit(main())

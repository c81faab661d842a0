import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect import get_client
from prefect.server.utilities.user_templates import render_user_template, validate_user_template
from prefect.settings import PREFECT_API_URL, temporary_settings

from engine.errors import ConfigError
from flows import _notices, _server
from flows._automation import ENDS, put
from flows._notices import NoticeError, checked, ended_badly, not_begun, set_up, try_out

TOKEN = "T0K3Nin-the_address"


class Receiver:
    """A webhook on this machine: the texts it was sent, and the status it answers with."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                receiver.texts.append(json.loads(body)["text"])
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing on stderr."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/{TOKEN}"

    def told_of(self, *words: str) -> list[str]:
        return [text for text in self.texts if all(word in text for word in words)]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()
    thread.join()


@pytest.mark.parametrize("url", ["", "hooks.example.com", "ftp://x/y", "https://", "https://a b", "http://x:99999/"])
def test_what_is_no_address_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(url + TOKEN if url == "ftp://x/y" else url)
    assert TOKEN not in str(caught.value)


def test_an_address_is_taken_as_it_was_given() -> None:
    url = f"https://hooks.example.com/services/{TOKEN}?a=%20b"
    assert checked(url) == url


def test_the_address_is_tried_with_a_notice_of_its_own(receiver: Receiver) -> None:
    before = len(receiver.texts)
    assert try_out(receiver.url, "dpo-pipeline") == 200
    assert "come here from now on" in receiver.texts[before]


def test_an_address_that_takes_nothing_is_an_error_that_does_not_name_it(receiver: Receiver) -> None:
    receiver.status = 404
    try:
        with pytest.raises(NoticeError, match="404") as refused:
            try_out(receiver.url, "dpo-pipeline")
    finally:
        receiver.status = 200
    with pytest.raises(NoticeError, match="ConnectError") as silent:
        try_out(f"http://127.0.0.1:9/{TOKEN}", "dpo-pipeline")
    assert TOKEN not in f"{refused.value}{silent.value}"


def test_nothing_is_set_up_where_the_trial_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_server, "choose_server", lambda port: port)
    monkeypatch.setattr(_server, "up", lambda port: None)
    monkeypatch.setattr(_notices, "set_up", lambda *_: pytest.fail("it was set up"))
    with pytest.raises(NoticeError):
        _server.notify(f"http://127.0.0.1:9/{TOKEN}")
    with pytest.raises(ConfigError):
        _server.notify("")
    assert TOKEN not in capsys.readouterr().out


def rendered(automation: Any, **context: Any) -> str:
    payload = automation.actions[0].payload
    validate_user_template(payload)
    context |= {"ui_url": None}
    sent = asyncio.run(render_user_template(payload.replace("|ui_url", "|string"), context))
    return str(json.loads(sent)["text"])


def test_a_notice_is_json_whatever_a_run_is_called_and_failed_of() -> None:
    state = {"name": "Failed", "message": 'DataError: "a" {{ b }} <c>\n  found: 指令 \\ \x07'}
    run = SimpleNamespace(name='my "profile", beta 0.2', id=uuid4())
    event = SimpleNamespace(payload={"validated_state": state})
    text = rendered(ended_badly("dpo-pipeline", uuid4()), flow_run=run, event=event)
    assert text.startswith('my "profile", beta 0.2: Failed\nDataError: "a" {{ b }} <c>\n  found: 指令 \\ \x07')


def test_a_notice_is_sent_of_a_run_without_words_and_of_one_that_nobody_can_read_any_more() -> None:
    event = SimpleNamespace(payload={"validated_state": {"name": "Crashed", "message": None}})
    assert "x: Crashed" in rendered(ended_badly("f", uuid4()), flow_run=SimpleNamespace(name="x"), event=event)
    assert "Crashed" in rendered(ended_badly("f", uuid4()), event=event)
    assert rendered(not_begun("f", uuid4())).startswith("f/nightly: the run of ")


def test_every_bad_end_is_told_and_a_night_that_anything_became_of_is_not_called_late() -> None:
    told = {each.rpartition(".")[2] for each in ended_badly("f", uuid4()).trigger.expect}
    begun = {each.rpartition(".")[2] for each in not_begun("f", uuid4()).trigger.expect}
    assert told >= {"Failed", "TimedOut", "Crashed", "Kept"} and not told & {"Completed", "Reused", "Planned"}
    assert begun >= {"Running", "Cancelled", *(end for end in ENDS if end != "TimedOut" and end != "Planned")} - {
        "Kept"
    }


class Server:
    """Stands in for the client of a server that keeps automations."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}

    async def read_automations_by_name(self, name: str) -> list[Any]:
        return [SimpleNamespace(id=id, enabled=each.enabled) for id, each in self.kept.items() if each.name == name]

    async def create_automation(self, wanted: Any) -> None:
        self.kept[uuid4()] = wanted

    async def update_automation(self, id: Any, wanted: Any) -> None:
        self.kept[id] = wanted


def test_setting_up_again_changes_the_two_automations_and_adds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    server, blocks = Server(), [uuid4(), uuid4()]

    @asynccontextmanager
    async def client() -> Any:
        yield server

    class Block:
        def __init__(self, url: Any, headers: Any) -> None:
            assert TOKEN not in f"{url!r} {url} {headers}"

        async def save(self, name: str, overwrite: bool) -> Any:
            assert overwrite
            return blocks.pop(0)

    monkeypatch.setattr(_notices, "get_client", client)
    monkeypatch.setattr(_notices, "Webhook", Block)
    asyncio.run(set_up("f", f"https://x/{TOKEN}"))
    first = set(server.kept)
    (last,) = blocks
    asyncio.run(set_up("f", f"https://y/{TOKEN}"))
    assert set(server.kept) == first and len(first) == 2
    assert {each.actions[0].block_document_id for each in server.kept.values()} == {last}


@pytest.mark.slow
def test_a_run_that_fails_is_told_with_its_name_and_reason_and_the_address_is_nowhere(
    clone: Any, receiver: Receiver
) -> None:
    for _ in range(2):
        done = clone.server("notify", "--url", receiver.url)
        assert done.returncode == 0, done.stdout + done.stderr
        assert TOKEN not in done.stdout + done.stderr
    failing = clone.prefect("deployment", "run", "dpo-pipeline/default", "--param", "profile=absent")
    assert failing.returncode == 0, failing.stderr
    (told,) = clone.wait_for(lambda: receiver.told_of("absent: Failed"))
    assert "there is no profile `absent`" in told
    assert f"http://127.0.0.1:{clone.port}/runs/flow-run/" in told
    shown = [
        clone.prefect("automation", "inspect", automation("f").name.replace("f:", "dpo-pipeline:"))
        for automation in (lambda f: ended_badly(f, uuid4()), lambda f: not_begun(f, uuid4()))
    ]
    shown.append(clone.prefect("block", "inspect", f"webhook/{_notices.BLOCK}"))
    logs = "".join(path.read_text() for path in (clone.root / ".prefect").glob("*.log"))
    assert TOKEN not in logs + "".join(each.stdout + each.stderr for each in shown)
    assert len(receiver.told_of("absent")) == 1


@pytest.mark.slow
def test_a_night_that_no_worker_takes_up_is_told_and_one_that_ends_well_is_not(clone: Any, receiver: Receiver) -> None:
    assert clone.server("notify", "--url", receiver.url).returncode == 0
    within_seconds(clone, 10.0)
    well = clone.prefect(
        "deployment", "run", "dpo-pipeline/nightly", "--param", "plan_only=true", "--param", "overrides=[]", "--watch"
    )
    assert well.returncode == 0, well.stdout
    clone.service("worker").kill()
    left = clone.prefect("deployment", "run", "dpo-pipeline/nightly", "--param", "overrides=[]")
    assert left.returncode == 0, left.stderr
    (told,) = clone.wait_for(lambda: receiver.told_of("dpo-pipeline/nightly: the run of 20"))
    assert "has not begun" in told and f"http://127.0.0.1:{clone.port}/runs/flow-run/" in told
    assert not receiver.told_of("plan")


def within_seconds(clone: Any, within: float) -> None:
    """Has the automation wait for less than the hour it waits for."""

    async def change() -> None:
        async with get_client() as client:
            wanted = not_begun("dpo-pipeline", uuid4(), within)
            (kept,) = await client.read_automations_by_name(wanted.name)
            await put(client, wanted.model_copy(update={"actions": kept.actions}))

    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{clone.port}/api"}):
        asyncio.run(change())

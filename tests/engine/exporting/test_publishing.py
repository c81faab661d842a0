import json
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import ClassVar

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from engine.errors import ConfigError, TransientError
from engine.exporting.publishing import Publisher, check_repository

TOKEN = "hf_" + "a" * 30


def refusal(kind, status):
    """An error of the client, with the answer that it came from."""
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status} from the Hub, asked with {TOKEN}")
    error.response = SimpleNamespace(status_code=status, headers={})
    return error


class Hub:
    """Stands for `HfApi`: notes what it is asked, and fails where it is told to."""

    def __init__(self, **answers):
        self.asked, self.answers = [], answers

    def __call__(self, token):
        assert token == TOKEN
        return self

    def __getattr__(self, name):
        def ask(*given, **named):
            self.asked.append((name, given, named))
            answer = self.answers.get(name)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


@pytest.fixture
def hub(monkeypatch):
    def make(**answers):
        fresh = {
            "whoami": {"auth": {"accessToken": {"role": "write"}}},
            "model_info": refusal(RepositoryNotFoundError, 404),
        }
        made = Hub(**fresh | answers)
        monkeypatch.setattr(huggingface_hub, "HfApi", made)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
        return made

    return make


def test_a_new_repository_is_private_unless_everybody_may_read_it(hub, tmp_path):
    for public in (False, True):
        made = hub()
        address = Publisher.find("me/mine", public=public).push(tmp_path, "Adapter", leave=("scores/*",))
        assert address == "https://huggingface.co/me/mine"
        [created] = [each for each in made.asked if each[0] == "create_repo"]
        assert created[2]["private"] is not public
        [uploaded] = [each for each in made.asked if each[0] == "upload_folder"]
        assert uploaded[2]["folder_path"] == tmp_path
        assert uploaded[2]["ignore_patterns"] == ["scores/*"]


def test_without_a_token_nothing_is_asked(hub, monkeypatch):
    made = hub()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="no token") as error:
        Publisher.find("me/mine", public=False)
    assert "HF_TOKEN" in error.value.fix
    assert made.asked == []


def test_a_repository_that_everybody_can_read_is_pushed_to_only_when_that_is_asked_for(hub, tmp_path):
    public = SimpleNamespace(private=False)
    made = hub(model_info=public)
    with pytest.raises(ConfigError, match="everybody can read it"):
        Publisher.find("me/mine", public=False)
    Publisher.find("me/mine", public=True).push(tmp_path, "x")
    assert "create_repo" not in [name for name, *_ in made.asked]
    hub(model_info=SimpleNamespace(private=True))
    assert not Publisher.find("me/mine", public=True).public


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "mine", "a/b/c", "/mine", "me/", "me/mi ne", "me/mi--ne", "-me/mine", "../mine", "me/mine."),
        *("me/mine.git", "me/mine\n", "me/" + "a" * 97, "https://huggingface.co/me/mine"),
    ],
)
def test_what_is_no_name_of_a_repository_is_refused_with_the_reason(hub, name):
    made = hub()
    with pytest.raises(ConfigError, match="no name of a repository") as error:
        Publisher.find(name, public=False)
    assert error.value.found
    assert "my-name/my-model" in error.value.fix
    assert made.asked == []


def test_a_name_as_the_hub_takes_it_is_none_to_refuse():
    for name in ("me/mine", "Me_2/my-model_1.5-b"):
        check_repository(name)


def test_a_token_that_may_only_read_is_refused_before_anything_is_made(hub):
    hub(whoami={"auth": {"accessToken": {"role": "read"}}})
    with pytest.raises(ConfigError, match="may only read"):
        Publisher.find("me/mine", public=False)


@pytest.mark.parametrize("where", ["whoami", "model_info"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (refusal(HfHubHTTPError, 401), ConfigError),
        (refusal(HfHubHTTPError, 403), ConfigError),
        (refusal(HfHubHTTPError, 429), TransientError),
        (refusal(HfHubHTTPError, 503), TransientError),
        (OfflineModeIsEnabled("offline"), TransientError),
        (ConnectionError("no route"), TransientError),
    ],
)
def test_a_refusal_is_final_and_trouble_on_the_way_is_not(hub, where, error, kind):
    hub(**{where: error})
    with pytest.raises(kind) as told:
        Publisher.find("me/mine", public=False)
    assert TOKEN not in str(told.value)


def test_a_push_that_fails_says_how_to_go_on(hub, tmp_path):
    hub(upload_folder=refusal(HfHubHTTPError, 502))
    with pytest.raises(TransientError) as error:
        Publisher.find("me/mine", public=False).push(tmp_path, "x")
    assert error.value.fix.endswith(f": hf upload me/mine {tmp_path} . --private")
    hub(create_repo=refusal(HfHubHTTPError, 403))
    with pytest.raises(ConfigError):
        Publisher.find("me/mine", public=False).push(tmp_path, "x")


def test_the_command_that_repeats_a_push_takes_no_more_along_and_shows_it_to_nobody_else(hub, tmp_path):
    folder = tmp_path / "my model's"
    hub(upload_folder=refusal(HfHubHTTPError, 502))
    with pytest.raises(TransientError) as error:
        Publisher.find("me/mine", public=False).push(folder, "x", leave=("scores/*",))
    words = shlex.split(error.value.fix.partition("with: ")[2])
    assert words == ["hf", "upload", "me/mine", str(folder), ".", "--exclude", "scores/*", "--private"]
    with pytest.raises(TransientError) as error:
        Publisher.find("me/mine", public=True).push(folder, "x", leave=("scores/*",))
    assert "--private" not in error.value.fix


class Answering(BaseHTTPRequestHandler):
    """As much of the Hub as is asked before a push."""

    seen: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self):
        self.seen.append((self.path, self.headers.get("authorization", "")))
        known = self.path.startswith("/api/whoami")
        self.send_response(200 if known else 404)
        if not known:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(json.dumps({"name": "me", "auth": {"accessToken": {"role": "write"}}}).encode())

    def log_message(self, *_):
        pass


def test_the_real_client_asks_who_it_is_and_whether_the_repository_is_there(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, real = f"http://127.0.0.1:{server.server_port}", huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: real(endpoint=address, token=token))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    try:
        found = Publisher.find("me/mine", public=False)
    finally:
        server.shutdown()
        server.server_close()
    assert (found.exists, found.public) == (False, False)
    assert [path.split("?")[0] for path, _ in Answering.seen] == ["/api/whoami-v2", "/api/models/me/mine"]
    assert all(authorization == f"Bearer {TOKEN}" for _, authorization in Answering.seen)

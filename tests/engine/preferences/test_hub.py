import errno
import json
import sys
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import httpx
import httpx2
import pytest

from engine.errors import ConfigError, DataError, PipelineError, TransientError
from engine.preferences.hub import read_hub

COMMIT = "a" * 40


class AiohttpError(Exception):
    """Stands in for the errors of a package that is not always there."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "repository"
    folder.mkdir()
    rows = [{"prompt": f"p{number}", "chosen": "a", "rejected": "b"} for number in range(3)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def failing(error: Exception) -> Callable[..., Any]:
    def load(*arguments: Any, **options: Any) -> Any:
        raise error

    return load


def test_the_rows_of_a_split_come_with_their_numbers(repository: str) -> None:
    records = list(read_hub(repository, "", "train", COMMIT))
    assert [(record.row, record.content) for record in records][2] == (
        3,
        {"prompt": "p2", "chosen": "a", "rejected": "b"},
    )
    assert {record.source for record in records} == {repository}


def test_the_commit_subset_and_split_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load(*arguments: Any, **options: Any) -> list[Any]:
        asked.update(options, arguments=arguments)
        return []

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_hub("owner/name", "small", "test[:10]", COMMIT)) == []
    assert asked == {"arguments": ("owner/name", "small"), "split": "test[:10]", "revision": COMMIT}


def test_a_stream_gives_the_same_rows_and_asks_for_no_copy(repository: str, tmp_path: Path) -> None:
    streamed = list(read_hub(repository, "", "train", COMMIT, streaming=True))
    assert not list(tmp_path.rglob("*.arrow"))
    assert streamed == list(read_hub(repository, "", "train", COMMIT))


def test_a_stream_is_read_no_further_than_rows_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in count():
            given.append(number)
            yield {"prompt": str(number)}

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **options: rows() if options["streaming"] else None)
    taken = list(islice(read_hub("owner/name", "", "train", COMMIT, streaming=True), 5))
    assert ([record.row for record in taken], given) == ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionError("Server Disconnected"), TransientError),
        (httpx.RemoteProtocolError("peer closed connection"), TransientError),
        (AiohttpError("not all data was received"), TransientError),
        (ValueError("JSON parse error"), DataError),
        (FileNotFoundError("part 2"), DataError),
    ],
)
def test_a_stream_that_breaks_off_is_the_networks_fault_or_the_datas_and_no_wrong_name(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[PipelineError]
) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"prompt": "p"}
        raise error

    monkeypatch.setitem(sys.modules, "aiohttp", SimpleNamespace(ClientError=AiohttpError))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    records = read_hub("owner/name", "", "train", COMMIT, streaming=True)
    assert next(records).row == 1
    with pytest.raises(PipelineError) as caught:
        next(records)
    assert type(caught.value) is kind


def test_a_full_disk_is_not_taken_for_bad_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", failing(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        list(read_hub("owner/name", "", "train", COMMIT))


def test_a_split_that_is_not_there_is_an_error_that_names_those_that_are(repository: str) -> None:
    with pytest.raises(ConfigError, match=r"Should be one of \['train'\]"):
        list(read_hub(repository, "", "test", COMMIT))


def test_a_subset_that_is_not_there_is_an_error_that_names_those_that_are(repository: str) -> None:
    with pytest.raises(ConfigError, match=r"Available: \['default'\]"):
        list(read_hub(repository, "nope", "train", COMMIT))


def test_a_broken_file_of_the_repository_is_an_error(repository: str) -> None:
    (Path(repository) / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt"')
    with pytest.raises(DataError, match="cannot be read"):
        list(read_hub(repository, "", "train", COMMIT))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionError("no route"), TransientError),
        (httpx.ReadTimeout("slow"), TransientError),
        (httpx2.ConnectError("no route"), TransientError),  # the Hub's client of today
        (caused(datasets.exceptions.DatasetGenerationError("x"), ConnectionError("cut off")), TransientError),
        (datasets.exceptions.DatasetGenerationError("x"), DataError),
        (datasets.exceptions.DatasetNotFoundError("gone"), ConfigError),
        (RuntimeError("Dataset scripts are no longer supported"), ConfigError),
    ],
)
def test_only_a_failing_network_may_be_tried_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[PipelineError]
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", failing(error))
    with pytest.raises(PipelineError) as caught:
        list(read_hub("owner/name", "", "train", COMMIT))
    assert type(caught.value) is kind

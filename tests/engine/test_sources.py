import hashlib
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from engine.errors import ConfigError, ModelError, StoreError, TransientError
from engine.sources import ModelSource, Sources, Unresolved

COMMIT, OTHER = "a" * 40, "b" * 40


class Hub:
    """Stands in for the Hub's client: answers with `answer`, or raises it."""

    answer: str | Exception = COMMIT
    asked: list[tuple[str, str]] = []  # noqa: RUF012

    def _info(self, repository: str, *, revision: str) -> SimpleNamespace:
        Hub.asked.append((repository, revision))
        if isinstance(Hub.answer, Exception):
            raise Hub.answer
        return SimpleNamespace(sha=Hub.answer)

    model_info = dataset_info = _info


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    Hub.answer, Hub.asked = COMMIT, []
    return Hub


@pytest.fixture
def sources(tmp_path) -> Sources:
    return Sources(tmp_path / "data", network=True)


def not_found() -> RepositoryNotFoundError:
    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    Exception.__init__(error, "404 Client Error\nmore")
    return error


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_files_that_match_are_found_once_and_in_order(sources, tmp_path):
    write(tmp_path, b__csv="b", a__csv="a", c__txt="c")
    (tmp_path / "folder.csv").mkdir()
    patterns = [str(tmp_path / "*.csv"), str(tmp_path / "a.csv"), str(tmp_path / "**" / "c.txt")]
    assert [path.name for path in sources.files(patterns)] == ["a.csv", "b.csv", "c.txt"]


def test_a_name_with_the_characters_of_a_glob_is_a_name_first(sources, tmp_path):
    write(tmp_path, **{"a[1]__csv": "brackets", "a1__csv": "plain"})
    assert [path.name for path in sources.files(str(tmp_path / "a[1].csv"))] == ["a[1].csv"]


def test_a_file_in_the_home_folder_may_be_named_so(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(write(tmp_path / "home", a__csv="a")))
    assert sources.files("~/a.csv") == [tmp_path / "home" / "a.csv"]


def test_a_pattern_without_a_file_is_refused_even_beside_one_with(sources, tmp_path):
    write(tmp_path, a__csv="a")
    with pytest.raises(ConfigError, match="no file matches"):
        sources.files([str(tmp_path / "a.csv"), str(tmp_path / "*.json")])


def test_the_identity_of_files_is_their_names_and_content_wherever_they_lie(sources, tmp_path):
    one, other = write(tmp_path / "one", a__csv="a"), write(tmp_path / "other", a__csv="a")
    assert sources.file_contents(str(one / "a.csv")) == [["a.csv", sha("a")]]
    assert sources.file_contents(str(one / "*")) == sources.file_contents(str(other / "*"))
    (other / "a.csv").write_text("b")
    os.utime(other / "a.csv", ns=(9, 9))
    assert sources.file_contents(str(one / "*")) != sources.file_contents(str(other / "*"))


def test_weights_and_tokenizer_of_a_folder_are_told_apart(sources, tmp_path):
    folder = write(
        tmp_path / "m",
        config__json="{}",
        model__safetensors="w",
        tokenizer__json="t",
        vocab__json="v",
        merges__txt="m",
        README__md="r",
    )
    (folder / "checkpoint.bin").mkdir()
    assert sources.weights(str(folder), "main") == [["config.json", sha("{}")], ["model.safetensors", sha("w")]]
    names = [name for name, _ in sources.tokenizer(str(folder), "main")]
    assert names == ["config.json", "merges.txt", "tokenizer.json", "vocab.json"]


def test_code_that_a_model_ships_is_part_of_both(sources, tmp_path):
    folder = write(tmp_path / "m", own__py="code", config__json="{}")
    before = sources.weights(str(folder), "main"), sources.tokenizer(str(folder), "main")
    (folder / "own.py").write_text("other code")
    after = sources.weights(str(folder), "main"), sources.tokenizer(str(folder), "main")
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_a_folder_that_holds_no_model_is_refused(sources, tmp_path):
    with pytest.raises(ModelError, match="holds no model"):
        sources.weights(str(write(tmp_path / "m", readme__md="")), "main")


@pytest.mark.parametrize("name", ["./missing", "/missing", "~/missing", "a/b/c", "missing"])
def test_a_model_that_is_neither_folder_nor_repository_is_refused_without_asking(sources, hub, name):
    with pytest.raises(ModelError, match="there is no model at"):
        sources.weights(name, "main")
    assert hub.asked == []


def test_a_commit_stands_for_itself(sources, hub):
    assert sources.weights("owner/name", OTHER) == f"owner/name@{OTHER}"
    assert hub.asked == []


def test_a_branch_is_resolved_once_a_run_and_remembered_for_the_next(sources, hub, tmp_path):
    assert sources.commit("owner/name", "main", "model") == COMMIT
    assert sources.tokenizer("owner/name", "main") == f"owner/name@{COMMIT}"
    assert hub.asked == [("owner/name", "main")]
    offline = Sources(tmp_path / "data", network=False)
    assert offline.commit("owner/name", "main", "model") == COMMIT
    assert len(hub.asked) == 1


def test_another_run_resolves_a_branch_anew(sources, hub, tmp_path):
    sources.commit("owner/name", "main", "dataset")
    hub.answer = OTHER
    assert Sources(tmp_path / "data", network=True).commit("owner/name", "main", "dataset") == OTHER
    assert Sources(tmp_path / "data", network=False).commit("owner/name", "main", "dataset") == OTHER


def test_what_was_never_resolved_is_unknown_offline(sources, hub, tmp_path):
    sources.commit("owner/name", "main", "model")
    for kind, revision in (("dataset", "main"), ("model", "v2")):
        with pytest.raises(Unresolved, match="never resolved"):
            Sources(tmp_path / "data", network=False).commit("owner/name", revision, kind)


@pytest.mark.parametrize("error", [ConnectionError("no route\nmore"), RuntimeError("client closed"), ValueError("?")])
def test_a_hub_that_does_not_answer_is_transient(sources, hub, error):
    hub.answer = error
    with pytest.raises(TransientError) as found:
        sources.commit("owner/name", "main", "dataset")
    assert "\n" not in found.value.found


def test_a_hub_that_does_not_answer_is_not_needed_for_what_it_answered_before(sources, hub, tmp_path, caplog):
    sources.commit("owner/name", "main", "dataset")
    hub.answer = ConnectionError("no route")
    with caplog.at_level(logging.WARNING, "dpo"):
        assert Sources(tmp_path / "data", network=True).commit("owner/name", "main", "dataset") == COMMIT
    assert "last time" in caplog.text


@pytest.mark.parametrize("error", [not_found(), HFValidationError("bad name")])
def test_a_repository_that_is_not_there_is_no_matter_for_another_attempt(sources, hub, error):
    hub.answer = error
    with pytest.raises(ConfigError) as found:
        sources.commit("owner/name", "main", "dataset")
    assert "HF_TOKEN" in found.value.fix


def test_code_further_down_in_a_model_folder_is_part_of_its_identity(sources, tmp_path):
    folder = write(tmp_path / "m", config__json="{}")
    write(folder / "below", own__py="code")
    before = sources.weights(str(folder), "main"), sources.tokenizer(str(folder), "main")
    assert ["below/own.py", sha("code")] in before[0]
    (folder / "below" / "own.py").write_text("other code")
    after = sources.weights(str(folder), "main"), sources.tokenizer(str(folder), "main")
    assert all(one != other for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("key", ["name", "policy"])
@pytest.mark.parametrize("revision", ["main", "v1", "abcdef", COMMIT[:-1], COMMIT.upper()])
def test_a_repositorys_code_may_run_at_a_full_commit_only(key, revision):
    pin = "revision" if key == "name" else "policy_revision"
    with pytest.raises(ConfigError, match="nothing says which version of it") as caught:
        ModelSource(**{key: "owner/name", pin: revision, "allow_code": "owner/name"})
    assert f"model.{pin}" in caught.value.expected and "huggingface.co/owner/name" in caught.value.fix
    ModelSource(**{key: "owner/name", pin: COMMIT, "allow_code": "owner/name"})
    ModelSource(**{key: "owner/name", pin: revision, "allow_code": "owner/other"})


def test_the_commit_to_pin_is_told_where_the_hubs_cache_knows_it(tmp_path, monkeypatch):
    refs = tmp_path / "models--owner--name" / "refs"
    write(refs, main=COMMIT, odd="../../secret")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for revision, line in (("main", f'set model.revision = "{COMMIT}"'), ("odd", "commit that you read")):
        with pytest.raises(ConfigError) as caught:
            ModelSource(name="owner/name", revision=revision, allow_code="owner/name")
        assert caught.value.fix.endswith(line) or line in caught.value.fix
        assert "secret" not in str(caught.value)


def test_a_folders_code_needs_no_commit(tmp_path):
    assert ModelSource(name=str(tmp_path), allow_code=str(tmp_path)).own_code_allowed


@pytest.mark.parametrize("name", ["a/..", "../a", "a/b--c", "a/b/../c", "a/b\0", "~nobody-here/x", "a\n/b", "a/b c"])
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_name_that_no_repository_has_is_refused_even_at_a_commit(sources, hub, name, kind, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # where no such folder lies beside
    with pytest.raises((ConfigError, ModelError), match="there is no"):
        sources.commit(name, COMMIT, kind)
    assert hub.asked == []


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '[["a", "b"]]', '{"model:owner/name@main": "../x"}'])
def test_a_damaged_memory_of_commits_is_an_empty_one(tmp_path, text):
    (tmp_path / ".resolved.json").write_text(text)
    with pytest.raises(Unresolved):
        Sources(tmp_path, network=False).commit("owner/name", "main", "model")


def test_commits_that_cannot_be_remembered_are_an_error_of_the_store(hub, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="data folder cannot be written"):
        Sources(tmp_path / "file", network=True).commit("owner/name", "main", "model")


def test_a_model_table_has_no_identity_of_its_own():
    assert ModelSource(name="a/b", revision="v1").identity() == {}
    pinned = {"name": "a/b", "revision": COMMIT, "policy": "c/d", "policy_revision": COMMIT}
    assert ModelSource(**pinned, allow_code="a/b").identity() == {"own_code": ["base"]}
    assert ModelSource(**pinned, allow_code="c/d").identity() == {"own_code": ["policy"]}
    assert ModelSource(**pinned, allow_code="e/f").identity() == {}


def test_a_model_may_run_its_code_only_when_it_is_named():
    assert ModelSource(name="a/b", revision=COMMIT, allow_code="a/b").own_code_allowed
    assert not ModelSource(name="a/b", allow_code="a/c").own_code_allowed
    assert not ModelSource().own_code_allowed


def test_what_is_remembered_can_be_read_by_people(sources, hub, tmp_path):
    sources.commit("owner/name", "main", "dataset")
    assert json.loads((tmp_path / "data" / ".resolved.json").read_text()) == {"dataset:owner/name@main": COMMIT}

import shutil

import pytest

from engine.policies import given_policy
from engine.promotion.given import changed_since, pinned
from engine.sources import ModelSource, Sources, Unresolved

COMMIT = "a" * 40


@pytest.fixture
def sources(tmp_path):
    return Sources(tmp_path / "data", network=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "policy").mkdir(parents=True)
    (tmp_path / "mine" / "policy" / "config.json").write_text("{}", "utf-8")
    return tmp_path / "mine" / "policy"


@pytest.mark.parametrize("relative", [False, True])
def test_a_folder_is_changed_when_a_file_of_it_is_or_when_it_is_gone(folder, sources, relative):
    model = ModelSource(policy="mine/policy" if relative else str(folder))
    given = given_policy(model, sources)
    assert changed_since(model, given, sources) == ""
    (folder / "config.json").write_text('{"layers": 2}', "utf-8")
    assert changed_since(model, given, sources) == model.policy
    shutil.rmtree(folder)
    assert changed_since(model, given, sources) == model.policy


def test_a_repository_is_what_it_was_at_its_commit_and_nobody_is_asked(sources):
    model, given = ModelSource(policy="owner/policy"), {"policy": f"owner/policy@{COMMIT}"}
    assert changed_since(pinned(model, given), given, sources) == ""
    with pytest.raises(Unresolved):
        changed_since(model, given, sources)


def test_where_none_was_given_nothing_changed(sources):
    assert changed_since(ModelSource(name="owner/base"), {}, sources) == ""


def test_a_base_at_a_branch_that_stood_for_the_policys_own_commit_is_no_change(sources):
    found = f"owner/model@{COMMIT}"
    model = ModelSource(name="owner/model", policy="owner/model", policy_revision=COMMIT)
    given = {"policy": found, "base": found}
    assert changed_since(pinned(model, given), given, sources) == ""
    assert changed_since(pinned(model, given), given | {"base": "owner/model@" + "b" * 40}, sources) == "owner/model"

import pytest

from engine.errors import ConfigError, ModelError
from engine.models.loading import Place
from engine.models.own_code import entries, is_commit, not_allowed, not_pinned, refuse_foreign

COMMIT = "c" * 40


def test_a_commit_is_forty_hexadecimal_digits():
    assert is_commit(COMMIT)
    assert not any(map(is_commit, ("main", COMMIT[1:], COMMIT + "c", COMMIT.upper(), f"{COMMIT}\n", "g" * 40)))


def test_the_error_for_a_repository_names_the_lines_to_set():
    assert f'model.allow_code = "o/n" and model.revision = "{COMMIT}"' in not_allowed("o/n", COMMIT, "model").fix
    assert not_allowed("folder", "main", "model").fix.endswith('set model.allow_code = "folder"')
    assert f'set model.revision = "{COMMIT}"' in not_pinned("o/n", "main", COMMIT).fix


@pytest.mark.parametrize("revision", ["main", "v1", COMMIT[:7]])
def test_nothing_is_loaded_with_code_at_a_revision_that_may_move(revision):
    with pytest.raises(ConfigError, match="nothing says which version"):
        Place("owner/name", revision, allow_code=True).arguments()
    assert Place("owner/name", COMMIT, allow_code=True).arguments()["trust_remote_code"] is True


def test_transformers_is_never_left_to_ask(tmp_path):
    for place in (Place("owner/name"), Place(str(tmp_path)), Place(str(tmp_path), allow_code=True)):
        assert place.arguments()["trust_remote_code"] is place.allow_code


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoModelForCausalLM": "other/name--own.Model"},
        {"AutoConfig": "../name--own.Config"},
        {"AutoTokenizer": ["owner/name--own.Slow", "other/name--own.Fast"]},
        ["other/name--own.Slow", None],
        "other/name--own.Slow",
    ],
)
def test_code_of_another_repository_is_refused(auto_map):
    with pytest.raises(ModelError, match="of another repository than its own"):
        refuse_foreign({"auto_map": auto_map}, "owner/name", "model")


@pytest.mark.parametrize(
    "auto_map",
    [None, {}, {"AutoModel": "other/name--own.Model"}, {"AutoConfig": "own.Config"}, ["owner/name--own.Slow", None], 7],
)
def test_a_repositorys_own_code_and_what_is_never_loaded_pass(auto_map):
    refuse_foreign({"auto_map": auto_map}, "owner/name", "model")


@pytest.mark.parametrize("kind", ["AutoConfig", "AutoModel", "AutoProcessor"])
def test_code_of_another_repository_is_refused_in_a_config_inside_a_config_too(kind):
    inner = {"model_type": "x", "auto_map": {kind: "other/name--own.C"}}
    for settings in ({"text_config": inner}, {"parts": [{"deep": inner}]}):
        with pytest.raises(ModelError, match="of another repository than its own"):
            refuse_foreign(settings, "owner/name", "model")


def test_every_key_is_seen_however_deep_it_lies():
    assert [key for key, _ in entries({"a": [{"b": {"c": 1}}, [{"d": 2}]], "e": "f"})] == ["a", "e", "b", "c", "d"]

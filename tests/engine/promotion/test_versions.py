import shutil

import pytest

from engine.errors import StoreError
from engine.promotion.versions import Versions, candidate_of
from engine.store import Artifact


def test_a_version_says_what_it_was_made_of_and_that_it_is_whole(root, version):
    one = version("a")
    assert Versions(root).record(one)["candidate"] == "model a"
    assert {stage for stage, _ in Versions(root).made_of(one)} == {"tokenize", "sft"}
    assert Versions(root).problems(one) == []
    assert Versions(root).find(one).path == Versions(root).place(one)


@pytest.mark.parametrize("stage", ["promote", "tokenize", "sft"])
def test_what_is_gone_of_it_is_named(root, version, stage):
    key = dict(Versions(root).made_of(one := version("a"))).get(stage, one)
    shutil.rmtree(root / stage / key)
    assert f"{stage}/{key} is gone" in Versions(root).problems(one)


def test_a_record_that_is_none_is_an_error_and_names_no_parts(root, version, seal):
    wrong = seal("promote", "wrong", {"handed_down.json": "{}"}).key
    for key in (wrong, "0" * 16):
        with pytest.raises(StoreError):
            Versions(root).record(key)
        assert Versions(root).made_of(key) == []


def test_a_model_is_its_adapter_and_the_policy_it_belongs_on(seal):
    def artifact(stage: str, text: str) -> Artifact:
        return seal(stage, f"{stage} {text}", {"file": text})

    one, other = artifact("train", "x"), artifact("train", "y")
    policy = artifact("sft", "p")
    found = [
        candidate_of({"train": one, "sft": policy}, {}),
        candidate_of({"train": other, "sft": policy}, {}),
        candidate_of({"train": one, "sft": artifact("sft", "q")}, {}),
        candidate_of({"train": one}, {"policy": "a/b@c"}),
        candidate_of({"train": one}, {"policy": "a/b@d"}),
    ]
    assert len(set(found)) == 5
    same = seal("train", "under another key", {"file": "x"})
    assert candidate_of({"train": same, "sft": policy, "evaluate": other}, {}) == found[0]

import shutil

import pytest

from engine.artifact import Artifact
from engine.reports.behind import behind
from engine.store import PRUNED


def pruned(artifact):
    """What `dpo gc` leaves of it."""
    kept = artifact.path.parents[1] / PRUNED / artifact.stage / artifact.key
    kept.mkdir(parents=True)
    shutil.move(artifact.path / "manifest.json", kept)
    shutil.rmtree(artifact.path)
    return Artifact(artifact.stage, artifact.key, kept, pruned=True)


@pytest.fixture
def chain(seal):
    above = seal("tokenize", {"pairs": 3})
    return above, seal("subsample", {}, key="key2", reads=[above])


def test_an_artifact_above_is_found_by_its_digest(chain, seal):
    above, below = chain
    seal("tokenize", {}, key="other", other={"content": 1})
    assert behind(below, "tokenize") == above


def test_one_under_another_key_with_the_same_content_counts_as_well(chain, seal):
    above, below = chain
    same = seal("tokenize", {}, key="same")
    shutil.rmtree(above.path)
    assert behind(below, "tokenize") == same


def test_of_a_removed_artifact_there_is_the_manifest_and_a_removed_one_finds_it_too(chain):
    above, below = chain
    found = behind(pruned(below), "tokenize")
    assert found == above
    left = pruned(above)
    found = behind(
        Artifact(below.stage, below.key, below.path.parents[1] / PRUNED / "subsample" / "key2", True), "tokenize"
    )
    assert found == left
    assert found.metrics == {"pairs": 3}


def test_nothing_is_found_of_a_stage_that_was_not_read_or_is_gone_or_of_a_broken_manifest(chain):
    above, below = chain
    assert behind(below, "download") is None
    (above.path / "manifest.json").write_text("{")
    assert behind(below, "tokenize") is None
    (below.path / "manifest.json").write_text("{")
    assert behind(Artifact(below.stage, below.key, below.path), "tokenize") is None


def test_inputs_of_another_shape_are_no_inputs(seal, monkeypatch):
    odd = seal("subsample", {})
    monkeypatch.setitem(odd.manifest["payload"], "inputs", ["tokenize"])
    assert behind(odd, "tokenize") is None

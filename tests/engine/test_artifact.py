import json

import pytest

from engine.artifact import MANIFEST, Artifact, seal_of
from engine.errors import StoreError

SOUND = {"bytes": 1, "sha256": "0"}


def forged(folder, **changed) -> Artifact:
    """An artifact whose manifest bears a right seal whatever stands in it."""
    manifest = {"stage": "train", "key": "k", "digest": "d", "payload": {}, "files": {}, "metrics": {}} | changed
    manifest = {name: value for name, value in manifest.items() if value is not None}
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(manifest | {"seal": seal_of(manifest)}))
    return Artifact("train", "k", folder)


def test_a_manifest_that_makes_sense_is_read(tmp_path):
    artifact = forged(tmp_path, files={"deep/a": SOUND, "b": {"bytes": 2, "sha256": "0"}})
    assert artifact.readable
    assert artifact.size_bytes == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"files": None},
        {"files": []},
        {"files": {"a": 3}},
        {"files": {"a": {"bytes": "1", "sha256": "0"}}},
        {"files": {"a": {"bytes": 1}}},
        {"files": {"../a": SOUND}},
        {"files": {"/etc/passwd": SOUND}},
        {"files": {"a\0": SOUND}},
        {"payload": "x"},
        {"metrics": []},
        {"digest": 3},
    ],
)
def test_a_manifest_of_another_shape_is_an_error_and_no_crash(tmp_path, changed):
    artifact = forged(tmp_path, **changed)
    assert not artifact.readable
    with pytest.raises(StoreError, match="manifest cannot be read"):
        _ = artifact.digest


@pytest.mark.parametrize("changed", [{"stage": "sft"}, {"key": "other"}])
def test_a_folder_that_was_put_in_the_place_of_another_is_not_taken_for_it(tmp_path, changed):
    with pytest.raises(StoreError, match="it is that of"):
        _ = forged(tmp_path, **changed).manifest


def test_what_was_added_is_told_but_for_what_no_reader_sees(tmp_path):
    artifact = forged(tmp_path, files={"deep/a": SOUND})
    (tmp_path / "deep").mkdir()
    for name in ("deep/a", "deep/b", "c", ".DS_Store", "deep/.d"):
        (tmp_path / name).write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "deep")
    (tmp_path / "empty").mkdir()
    assert artifact.strangers() == ["c", "deep/b", "link"]

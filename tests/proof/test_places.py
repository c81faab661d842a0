from collections.abc import Callable
from pathlib import Path

from proof.places import Outcome, Place, redone
from proof.profile import NAMES


def test_a_whole_artifact_is_not_torn(place: Place, seal: Callable[..., Path]) -> None:
    seal()
    assert place.torn() == []
    assert place.is_sealed("train")
    assert not place.is_sealed("sft")


def test_a_folder_without_a_manifest_is_torn(place: Place, seal: Callable[..., Path]) -> None:
    (seal() / "manifest.json").unlink()
    assert "no whole manifest" in place.torn()[0]


def test_half_a_manifest_is_torn(place: Place, seal: Callable[..., Path]) -> None:
    manifest = seal() / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8")[:20], "utf-8")
    assert "no whole manifest" in place.torn()[0]


def test_a_changed_a_missing_and_an_added_file_are_torn(place: Place, seal: Callable[..., Path]) -> None:
    changed, missing, added = (seal(key=letter * 16) for letter in "bcd")
    (changed / "adapter" / "adapter_model.safetensors").write_bytes(b"the Weights")
    (missing / "adapter" / "adapter_model.safetensors").unlink()
    (added / "new").touch()
    assert [problem.split(" ", 1)[0] for problem in sorted(place.torn())] == [f"train/{each * 16}" for each in "bcd"]


def test_what_a_kill_left_under_a_name_with_a_dot_in_front_is_not_the_artifacts(
    place: Place, seal: Callable[..., Path]
) -> None:
    folder = seal()
    (folder / ".scoring").mkdir()
    for name in (".attempt.json", ".scoring/00000.parquet", "adapter/.part"):
        (folder / name).touch()
    assert place.torn() == []


def test_a_manifest_that_changed_or_went_away_is_told_as_redone() -> None:
    before = {"sft/a": b"1", "train/b": b"2", "evaluate/c": b"3"}
    after = {"sft/a": b"1", "train/b": b"other"}
    assert len(redone(before, after)) == 2
    assert redone(before, after, ["train", "evaluate"]) == []


def test_an_outcome_names_the_stage_that_differs_and_the_adapter() -> None:
    wanted = Outcome(dict.fromkeys(NAMES, "x"), "weights")
    assert wanted.differences(wanted) == []
    assert "sft" in Outcome({**wanted.digests, "sft": "y"}, "weights").differences(wanted)[0]
    assert "train" in Outcome({name: "x" for name in NAMES if name != "train"}, "weights").differences(wanted)[0]
    assert "adapter" in Outcome(wanted.digests, "others").differences(wanted)[0]


def test_the_outcome_is_read_off_the_last_sealed(place: Place, seal: Callable[..., Path]) -> None:
    seal("sft"), seal("train")
    found = place.outcome()
    assert found.digests == {"sft": "of sft", "train": "of train"}
    assert len(found.adapter) == 64


def test_the_stage_at_work_is_the_last_that_began_and_is_not_sealed(place: Place, seal: Callable[..., Path]) -> None:
    assert place.at_work() == ""
    for stage in ("train", "sft"):
        (place.folder / "artifacts" / ".work" / f"{stage}-1").mkdir(parents=True)
    assert place.at_work() == "train"
    assert len(place.leftovers()) == 2
    seal("train")
    assert place.at_work() == ""


def test_a_copy_holds_what_the_place_held_and_is_asked_the_same(place: Place, seal: Callable[..., Path]) -> None:
    seal()
    copied = place.copy("other", "--set", "train.beta=0.2")
    assert copied.manifests() == place.manifests()
    assert copied.order().words == ["run", "--profile", "tiny.toml", "--set", "train.beta=0.2"]
    assert copied.order("verify").words[0] == "verify"

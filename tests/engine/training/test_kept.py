import json

import pytest
import torch

from engine.errors import StoreError
from engine.training.kept import KeptWeights


def weights(value):
    return {"a": torch.full((3,), float(value)), "b": torch.full((2, 2), float(-value))}


@pytest.fixture
def kept(tmp_path):
    return KeptWeights(tmp_path / ".best")


def put_back(kept):
    into = weights(0)
    kept.put_back(into)
    return into["a"][0].item(), into["b"][1, 1].item()


def test_what_was_kept_last_comes_back_with_its_step_and_numbers_and_nothing_else_lies_about(kept, tmp_path):
    kept.keep(0, {}, weights(1))
    kept.keep(50, {"loss": 0.5}, weights(2))
    again = KeptWeights(tmp_path / ".best")
    assert put_back(again) == (2.0, -2.0)
    assert (again.step, again.numbers) == (50, {"loss": 0.5})
    assert sorted(path.suffix for path in (tmp_path / ".best").iterdir()) == [".json", ".safetensors"]


def test_the_same_weights_may_be_kept_again_at_another_step(kept):
    kept.keep(0, {}, weights(1))
    kept.keep(50, {}, weights(1))
    assert (kept.step, put_back(kept)) == (50, (1.0, -1.0))


def test_before_anything_is_kept_there_is_no_step_and_nothing_is_touched(kept, tmp_path):
    assert (kept.step, kept.numbers) == (None, {})
    assert not (tmp_path / ".best").exists()
    with pytest.raises(StoreError, match="are lost"):
        put_back(kept)


@pytest.mark.parametrize("place", ["save_file", "sync", "write_atomically"])
def test_a_disk_that_refuses_leaves_what_was_kept_before(kept, monkeypatch, place):
    kept.keep(10, {}, weights(1))

    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(f"engine.training.kept.{place}", refuse)
        with pytest.raises(StoreError, match="cannot be written") as caught:
            kept.keep(20, {}, weights(2))
    assert "No space left" in caught.value.found
    assert (kept.step, put_back(kept)) == (10, (1.0, -1.0))


def test_a_flipped_bit_is_noticed_before_a_weight_is_touched(kept, tmp_path):
    kept.keep(10, {}, weights(1))
    [file] = (tmp_path / ".best").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    into = weights(7)
    with pytest.raises(StoreError, match="are lost") as caught:
        kept.put_back(into)
    assert "is not as it was written" in caught.value.found
    assert into["a"][0] == 7
    assert kept.step is None  # so that a run that goes on keeps others in time
    file.unlink()
    assert kept.step is None


def test_the_weights_of_another_adapter_are_refused(kept):
    kept.keep(10, {}, weights(1))
    with pytest.raises(StoreError, match="are lost"):
        kept.put_back({"c": torch.zeros(3)})


@pytest.mark.parametrize(
    "junk", ["", "[]", "null", '{"step": "1"}', '{"step": 1, "numbers": [], "file": "x"}', "[" * 9999]
)
def test_a_damaged_note_is_as_none(kept, tmp_path, junk):
    kept.keep(10, {}, weights(1))
    (tmp_path / ".best" / "kept.json").write_text(junk)
    assert kept.step is None
    kept.keep(11, {}, weights(3))
    assert json.loads((tmp_path / ".best" / "kept.json").read_text())["step"] == 11

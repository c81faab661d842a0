from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from engine.errors import DataError, StoreError
from engine.guarding import run_guarded
from engine.stage import Stage


def failing(error: BaseException) -> Stage:
    def run(ctx) -> None:
        raise error

    return Stage("train", object, 1, run)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (OSError(28, "No space left on device"), "work"),
        (PermissionError(13, "denied", "/x/y"), "/x/y"),
        (OSError(28, "No space left on device", b"/x/y"), "/x/y"),
        (SafetensorError("No space left on device"), "work"),
    ],
)
def test_trouble_with_the_disk_says_what_to_do(error, where):
    with pytest.raises(StoreError) as found:
        run_guarded(failing(error), SimpleNamespace(work="work"))
    assert found.value.where == where
    assert "b'" not in str(found.value)
    assert "finished stages are kept" in found.value.fix


@pytest.mark.parametrize("error", [DataError("bad"), ValueError("a bug"), OSError("no number"), KeyboardInterrupt()])
def test_everything_else_comes_through_as_it_is(error):
    with pytest.raises(type(error)) as found:
        run_guarded(failing(error), SimpleNamespace(work="work"))
    assert found.value is error

import argparse

import pytest

from engine.errors import ConfigError, MissingInputError, StoreError
from engine.exporting.finished import Finished
from flows._finished import finished_of, whole_number


def given(tmp_path, **named):
    profile = tmp_path / "mine.toml"
    folders = f"artifacts = '{tmp_path / 'artifacts'}'\ndata = '{tmp_path / 'data'}'\n"
    profile.write_text(f"[download]\nembedded_pairs = 10\n[runtime]\n{folders}")
    return argparse.Namespace(**{"profile": str(profile), "set": [], "run": None, "version": None} | named)


def test_one_is_named_or_is_in_service(tmp_path, monkeypatch):
    monkeypatch.setattr(Finished, "of_run", lambda run, runtime: ("run", run, runtime.artifacts))
    monkeypatch.setattr(Finished, "of_version", lambda version, runtime: ("version", version, runtime.artifacts))
    monkeypatch.setattr(Finished, "in_service", lambda runtime, again: ("service", runtime.service, again))
    assert finished_of(given(tmp_path, run="r")) == ("run", "r", tmp_path / "artifacts")
    assert finished_of(given(tmp_path, version="v")) == ("version", "v", tmp_path / "artifacts")
    kind, service, again = finished_of(given(tmp_path))
    assert kind == "service"
    assert service.startswith("mine")
    assert again.startswith("dpo run --profile")


def test_what_is_not_there_is_an_error_with_what_to_do(tmp_path):
    with pytest.raises(MissingInputError, match="no model in service yet"):
        finished_of(given(tmp_path))
    with pytest.raises(StoreError, match="there is no version v"):
        finished_of(given(tmp_path, version="v"))
    with pytest.raises(StoreError, match="there is no run `r`"):
        finished_of(given(tmp_path, run="r"))
    with pytest.raises(ConfigError):
        finished_of(given(tmp_path, set=["nonsense.key=1"]))


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "99999999999"])
def test_a_count_is_a_whole_number_above_zero(text):
    assert whole_number("12") == 12
    with pytest.raises(ValueError, match=r"\w"):
        whole_number(text)

import shlex
from pathlib import Path

import pytest

from engine.reports.configuration import changes, command, every_key, versions
from engine.runs import RunRecord


@pytest.fixture
def record() -> RunRecord:
    return RunRecord(
        id="20260102-030405-demo",
        folder=Path("runs"),
        profile="demo",
        overrides=["train.beta=0.2", "download.files=a file's name"],
        selection={"only": None, "since": "train", "until": None, "force": True, "of a later version": 1},
        config={
            "profile": "demo",
            "train": {"beta": 0.2, "lora": {"rank": 8}},
            "model": {"name": "a|b"},
            "compare": {},
        },
        changed={"train.beta": 0.2},
        environment={"torch": "2.13", "<b>": "*1*"},
        started_at="",
        began=0.0,
    )


def test_what_differs_from_the_defaults_stands_below_the_profile_and_what_was_set(record):
    told = changes(record)
    assert told.startswith("Profile `demo`, with `train.beta=0.2`, `download.files=a file's name`.")
    assert "| `train.beta` | `0.2` |" in told
    record.changed, record.overrides = {}, []
    assert changes(record) == "Profile `demo`. What differs from the defaults:\n\nEverything has its default."


def test_every_key_in_force_has_a_row_with_its_dotted_name(record):
    rows = every_key(record).splitlines()[2:]
    assert rows == [
        "| `train.beta` | `0.2` |",
        "| `train.lora.rank` | `8` |",
        '| `model.name` | `"a\\|b"` |',
        "| `compare` | `{}` |",
    ]


@pytest.mark.parametrize(("loss", "told"), [("simpo", False), ("sigmoid", True)])
def test_displacement_is_no_key_in_force_where_nothing_is_held_against_a_reference(record, loss, told):
    monitor = {"displacement": 0.5, "displacement_steps": 20, "gradient": 10.0}
    record.config = {"train": {"loss": [{"name": loss, "weight": 1.0}], "monitor": monitor}}
    assert ("displacement" in every_key(record)) == told
    assert "`train.monitor.gradient`" in every_key(record)


def test_the_command_has_the_profile_the_selection_and_what_was_set_as_a_shell_takes_it(record):
    words = ["dpo", "run", "--profile", "demo", "--from", "train", "--force"]
    words += ["--set", "train.beta=0.2", "--set", "download.files=a file's name"]
    assert shlex.split(command(record)) == words
    record.selection, record.overrides = {}, []
    assert command(record) == "dpo run --profile demo"


def test_the_versions_are_text_whatever_they_are(record):
    assert r"| &lt;b&gt; | \*1\* |" in versions(record)
    record.environment = {}
    assert versions(record) == ""

from typing import Any

import pytest

from engine.errors import ConfigError
from engine.selection import Selection

ALL = ["download", "tokenize", "sft", "train", "evaluate"]


def names(**selection: Any) -> list[str]:
    return Selection(**selection).names(ALL)


def test_a_selection_takes_a_stretch_of_the_stages():
    assert names() == ALL
    assert names(only="sft") == ["sft"]
    assert names(since="train") == ["train", "evaluate"]
    assert names(until="tokenize") == ["download", "tokenize"]
    assert names(since="tokenize", until="sft") == ["tokenize", "sft"]


@pytest.mark.parametrize(
    ("selection", "problem"),
    [
        ({"only": "trian"}, "there is no stage `trian`; did you mean `train`?"),
        ({"since": "train", "until": "sft"}, "nothing lies from `train` until `sft`"),
        ({"only": "train", "until": "sft"}, "--only cannot be combined with --from or --until"),
        ({"only": "train", "since": "sft"}, "--only cannot be combined with --from or --until"),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(selection, problem):
    with pytest.raises(ConfigError) as error:
        names(**selection)
    assert error.value.problem == problem


def test_a_selection_can_be_said_again_as_words():
    assert Selection().arguments() == []
    assert Selection(since="sft", until="train", force=True).arguments() == [
        *("--from", "sft", "--until", "train", "--force")
    ]
    assert Selection(only="sft").arguments() == ["--only", "sft"]

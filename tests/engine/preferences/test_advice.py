import shlex

from engine.preferences.advice import ignoring, reads_messages, reads_texts, setting
from engine.preferences.formats import FORMAT_NAMES


def test_a_setting_is_one_word_of_a_shell_and_can_be_printed() -> None:
    assert setting("format", "hh-rlhf") == "--set download.format=hh-rlhf"
    assert shlex.split(setting("format", "field map")) == ["--set", "download.format=field map"]
    assert "\x1b" not in setting("fields.prompt", "\x1b[2J")


def test_ignored_columns_are_a_list_of_all_of_them_once() -> None:
    assert shlex.split(ignoring(["b", 'a "x"', "b"])) == ["--set", 'download.ignore=["a \\"x\\"", "b"]']


def test_formats_of_two_readings_are_asked_for_by_names_that_exist() -> None:
    assert {reads_messages(name) for name in FORMAT_NAMES} <= {*FORMAT_NAMES}
    assert {reads_texts(name) for name in FORMAT_NAMES} <= {"", *FORMAT_NAMES}
    assert reads_messages("field map") == "messages" and reads_texts("field map") == "prompt/chosen/rejected"

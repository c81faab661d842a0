import io
import sys
from types import SimpleNamespace

import pytest

from engine.chatting import Said, Speaker
from engine.errors import DataError
from flows import _chat, cli
from flows._chat import talk


class Chat:
    """Repeats what it is told, in the words of each side."""

    def __init__(self, *, beside=True):
        self.speakers = [Speaker(start) for start in ((True, False) if beside else (False,))]
        self.system, self.asked, self.resets = "", [], 0

    def ask(self, text):
        if text == "<s>":
            raise DataError("a message spells the special token <s>")
        if text == "stop":
            raise KeyboardInterrupt
        self.asked.append(text)
        return [
            Said(f"{'old' if each.start else 'new'} {text}", text != "long", text == "deep") for each in self.speakers
        ]

    def reset(self):
        self.resets += 1


@pytest.fixture
def say(monkeypatch, capsys):
    """Pipes lines in; what was printed."""

    def pipe(*lines, beside=True, interactive=False, width=80):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        monkeypatch.setenv("COLUMNS", str(width))
        pipe.chat = Chat(beside=beside)
        talk(pipe.chat, interactive=interactive)
        return capsys.readouterr().out

    return pipe


def test_lines_from_a_pipe_are_answered_one_by_one_without_a_prompt(say):
    assert say("hello", "", "bye") == "before: old hello\nafter: new hello\nbefore: old bye\nafter: new bye\n"
    assert say("hello", beside=False) == "new hello\n"


def test_slashes_are_commands_and_wrong_ones_are_told(say):
    out = say("/system Be brief.", "hello", "/reset", "/system", "/help", "/nonsense", "/quit", "never")
    assert "with this system message" in out
    assert "without a system message" in out
    assert "there is no /nonsense" in out
    assert "/system TEXT" in out
    assert say.chat.asked == ["hello"]
    assert (say.chat.system, say.chat.resets) == ("", 3)


def test_a_message_that_cannot_be_written_is_told_and_the_talk_goes_on(say):
    out = say("<s>", "hello")
    assert "(a message spells the special token <s>)" in out
    assert say.chat.asked == ["hello"]


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # the second in the C locale
def test_bytes_that_are_no_text_are_told_and_text_is_text_in_any_locale(monkeypatch, errors):
    lines = io.BytesIO("grüße\n".encode() + b"\xff\xfe\n")
    encoding = "utf-8" if errors == "strict" else "ascii"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines, encoding, errors))
    chat = Chat()
    with pytest.raises(DataError, match="what was typed is no text") as error:
        talk(chat, interactive=False)
    assert error.value.fix == "send UTF-8"
    assert chat.asked == ([] if errors == "strict" else ["grüße"])  # strict, the whole piece that was read is none


def test_ctrl_c_and_ctrl_d_leave_without_a_traceback(say):
    assert "old a" in say("a", "stop", "never")
    assert say.chat.asked == ["a"]
    assert say() == ""


def test_a_wide_terminal_shows_both_side_by_side_and_a_narrow_one_one_under_the_other(say):
    wide = say("hello", interactive=True, width=120)
    assert any("old hello" in line and "new hello" in line for line in wide.splitlines())
    assert any("before" in line and "after" in line for line in wide.splitlines())
    narrow = say("hello", interactive=True, width=60)
    assert not any("old hello" in line and "new hello" in line for line in narrow.splitlines())


def test_an_answer_acts_on_no_terminal_and_says_that_it_was_cut_off(say, monkeypatch):
    out = say("\x1b[31mred", "long", "deep", beside=False)
    assert "\x1b" not in out
    assert r"new \x1b[31mred" in out
    assert "new long\n(cut off)" in out
    assert "did not fit" in out


def test_the_command_asks_the_model_that_is_meant_as_it_is_told(monkeypatch, capsys):
    from engine import chatting

    made = []
    monkeypatch.setattr(_chat, "finished_of", lambda given: SimpleNamespace(name="version v", open=lambda: "subject"))
    monkeypatch.setattr(_chat, "talk", lambda chat, *, interactive: made.append(interactive))
    monkeypatch.setattr(chatting, "Chat", lambda *given, **named: made.append((given, named)))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli.main(["chat", "--sample", "--seed", "3", "--max-new-tokens", "9", "--no-base"]) == 0
    (subject, settings), named = made[0]
    assert (subject, named, made[1]) == ("subject", {"beside": False, "seed": 3}, False)
    assert (settings.do_sample, settings.max_new_tokens, settings.temperature) == (True, 9, 0.7)
    assert cli.main(["chat", "--seed", "0"]) == 0
    (_, settings), named = made[2]
    assert named["seed"] == 0
    assert (settings.do_sample, settings.max_new_tokens, named["beside"]) == (False, 256, True)


def test_where_nothing_is_in_service_it_is_said_what_to_do(tmp_path, capsys):
    profile = tmp_path / "mine.toml"
    profile.write_text(f"[download]\nembedded_pairs = 10\n[runtime]\nartifacts = '{tmp_path / 'artifacts'}'\n")
    assert cli.main(["chat", "--profile", str(profile)]) == 1
    err = capsys.readouterr().err
    assert "there is no model in service yet" in err
    assert "dpo run --profile" in err

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from engine import chatting
from engine.chatting import Chat
from engine.errors import DataError
from engine.models.generation import GREEDY, Generation


class Form:
    """A template of a world where every letter is an id; it keeps what it was asked to write."""

    stop_ids = (2,)
    tokenizer = SimpleNamespace(pad_token_id=0, decode=lambda ids, skip_special_tokens: "".join(map(chr, ids)))

    def __init__(self):
        self.written = []

    def prompt_ids(self, talks):
        for talk in talks:
            if "<s>" in talk[-1]["content"]:
                raise DataError("a message spells the special token <s>")
            self.written.append([(each["role"], each["content"]) for each in talk])
        return [[ord(sign) for sign in "|".join(each["content"] for each in talk)] for talk in talks]

    def cut_prompt(self, ids, limit):
        return ids[-limit:]


class Model:
    """It is off where its adapter is."""

    off = False

    @contextmanager
    def disable_adapter(self):
        self.off = True
        yield
        self.off = False


@pytest.fixture
def asked():
    """What the generation was asked."""
    return []


@pytest.fixture
def chat(monkeypatch, asked):
    def generate(model, prompts, **how):
        asked.append(SimpleNamespace(ids=prompts[0], off=model.off, **how))
        said = "old" if model.off else "new"
        return [Generation([ord(sign) for sign in f"{said}{len(asked)}"], ended=len(asked) != 2)]

    monkeypatch.setattr(chatting, "generate", generate)

    def make(*, beside=True, limit=100):
        subject = SimpleNamespace(model=Model(), template=Form(), max_prompt_length=limit, device="cpu")
        made = Chat(subject, GREEDY, beside=beside, seed=7)
        made.form = subject.template
        return made

    return make


def test_each_side_goes_on_from_what_it_said_itself(chat):
    talk = chat()
    assert [said.text for said in talk.ask("a")] == ["old1", "new2"]
    talk.ask("b")
    assert talk.form.written[2] == [("user", "a"), ("assistant", "old1"), ("user", "b")]
    assert talk.form.written[3] == [("user", "a"), ("assistant", "new2"), ("user", "b")]


def test_the_first_to_speak_is_the_policy_without_its_adapter(chat, asked):
    talk = chat()
    talk.ask("a")
    assert [each.off for each in asked] == [True, False]
    assert [speaker.start for speaker in talk.speakers] == [True, False]
    alone = chat(beside=False)
    assert len(alone.ask("a")) == 1
    assert asked[-1].off is False


def test_it_stops_and_draws_as_evaluation_does_with_other_numbers_each_turn(chat, asked):
    talk = chat()
    talk.ask("a")
    talk.ask("b")
    assert {each.eos_ids for each in asked} == {(2,)}
    assert [each.seed for each in asked] == [7, 7, 8, 8]


def test_a_system_message_stands_before_every_turn_and_outlives_a_new_beginning(chat):
    talk = chat(beside=False)
    talk.system = "Be brief."
    talk.ask("a")
    talk.reset()
    talk.ask("b")
    assert talk.form.written[-1] == [("system", "Be brief."), ("user", "b")]
    assert talk.turns == 1


def test_an_answer_says_whether_it_was_cut_off_and_whether_the_beginning_was_forgotten(chat):
    talk = chat(limit=4)
    first, second = talk.ask("abc")
    assert (first.ended, second.ended) == (True, False)
    assert not first.forgot
    assert talk.ask("def")[0].forgot


def test_a_message_that_cannot_be_written_leaves_the_conversation_as_it_was(chat):
    talk = chat()
    talk.ask("a")
    with pytest.raises(DataError):
        talk.ask("<s>")
    assert talk.turns == 1
    assert all(len(speaker.history) == 2 for speaker in talk.speakers)

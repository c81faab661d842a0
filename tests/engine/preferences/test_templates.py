import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from engine.errors import ConfigError, DataError
from engine.preferences.templates import Template, plain_transcript, seed_transcript, template
from engine.preferences.tokenizing import train_bpe

BOS, EOS = 1, 2
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% elif m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(["</s>", "<s> a </s>", "<pad>", "\n", "好"])


def asks(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def new_tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe(iter(["User:\nwhat?\nAssistant:\nthis\n", "指令:什么\n输出:这个"] * 4), 400)


def chat(jinja: str) -> Template:
    tokenizer = new_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = jinja
    return template("chat", tokenizer)


TOKENIZER = new_tokenizer()
SEED, PLAIN, CHAT_ML, CHAT_INST = template("seed", TOKENIZER), template("plain", TOKENIZER), chat(CHATML), chat(INST)


def test_the_seeds_prompt_is_its_text_and_then_bos():
    (ids,) = SEED.prompt_ids([asks("怎么修自行车？")])
    assert ids[-1] == BOS and ids.count(BOS) == 1
    assert TOKENIZER.decode(ids[:-1]) == "指令:怎么修自行车？\n输出:"
    assert SEED.end_ids == (EOS,)


def test_the_plain_prompt_begins_with_bos_and_names_the_speakers():
    (ids,) = PLAIN.prompt_ids([asks("what?")])
    assert ids[0] == BOS and ids.count(BOS) == 1
    assert TOKENIZER.decode(ids[1:]) == "User:\nwhat?\nAssistant:\n"


def test_earlier_turns_stand_before_the_question():
    turns = [
        {"role": "system", "content": "be kind"},
        *asks("one"),
        {"role": "assistant", "content": "two"},
        *asks("three"),
    ]
    assert plain_transcript(turns) == "System:\nbe kind\nUser:\none\nAssistant:\ntwo\nUser:\nthree\nAssistant:\n"
    assert seed_transcript(turns) == "be kind\n指令:one\n输出:two\n指令:three\n输出:"


def test_braces_in_a_question_stay_as_they_are():
    assert seed_transcript(asks("{} {query} %s")) == "指令:{} {query} %s\n输出:"


def test_the_chat_prompt_is_the_tokenizers_own_with_its_generation_prompt():
    own = CHAT_ML.tokenizer.apply_chat_template(asks("hi"), add_generation_prompt=True, return_dict=False)
    assert CHAT_ML.prompt_ids([asks("hi")]) == [[BOS, *own]]
    assert CHAT_ML.tokenizer.decode(list(CHAT_ML.header_ids)) == "<|im_end|>\n<|im_start|>assistant\n"


def test_a_bos_that_the_chat_template_writes_is_not_doubled():
    own = CHAT_INST.tokenizer.apply_chat_template(asks("hi"), tokenize=True, return_dict=False)
    assert CHAT_INST.prompt_ids([asks("hi")]) == [own] and own.count(BOS) == 1


def test_no_bos_is_invented_where_the_tokenizer_has_none():
    tokenizer = new_tokenizer()
    tokenizer.bos_token = None
    assert template("plain", tokenizer).prompt_ids([asks("hi")])[0][0] != BOS


def test_a_chat_response_ends_as_the_template_ends_a_turn():
    end_of_turn = CHAT_ML.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert CHAT_ML.end_ids == (end_of_turn,)
    assert CHAT_ML.stop_ids == [EOS, end_of_turn]
    assert CHAT_INST.end_ids[-1] == EOS and CHAT_INST.tokenizer.decode(list(CHAT_INST.end_ids)) == " </s>"


def test_a_chat_template_that_closes_no_turn_is_closed_by_eos():
    bare = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    bare += "{% if add_generation_prompt %}assistant: {% endif %}"
    assert chat(bare).end_ids == (EOS,)


@pytest.mark.parametrize("form", [SEED, PLAIN, CHAT_INST], ids=lambda form: form.name)
@given(text=TEXT)
@settings(deadline=None, max_examples=50)
def test_every_prompt_has_one_bos_no_eos_and_ends_with_the_header(form, text):
    try:
        (ids,) = form.prompt_ids([asks(text)])
    except DataError:
        assert form.name == "chat" and any(special in text for special in ("<s>", "</s>", "<pad>"))
        return
    assert ids.count(BOS) == 1 and EOS not in ids
    assert tuple(ids[: len(form.lead_ids)]) == form.lead_ids
    assert tuple(ids[-len(form.header_ids) :]) == form.header_ids


@pytest.mark.parametrize("form", [SEED, PLAIN], ids=lambda form: form.name)
@given(text=TEXT)
@settings(deadline=None, max_examples=50)
def test_a_response_comes_back_from_its_ids_and_never_holds_bos_or_eos(form, text):
    (ids,) = form.response_ids([text])
    assert TOKENIZER.decode(ids) == text
    assert BOS not in ids and EOS not in ids


def test_a_word_tokenizer_gives_no_eos_to_text_that_spells_it():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "yes": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    assert template("seed", tokenizer).response_ids(["yes </s> what <s> yes"]) == [[3, 0, 3]]


@given(texts=st.lists(TEXT, min_size=1, max_size=4))
@settings(deadline=None, max_examples=80)
def test_ids_are_those_that_the_tokenizer_gives_when_it_is_called(texts):
    called = TOKENIZER(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert PLAIN.response_ids(texts) == called
    parsed = CHAT_ML.tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [ids[1:] for ids in CHAT_ML.encode_prompts(texts)] == [_without(BOS, ids) for ids in parsed]


def _without(lead: int, ids: list[int]) -> list[int]:
    while ids[:1] == [lead]:
        ids = ids[1:]
    return ids


def test_limits_and_padding_that_a_tokenizer_was_saved_with_change_nothing():
    tokenizer = new_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=90)
    assert template("plain", tokenizer).response_ids(["what? this", "a"]) == PLAIN.response_ids(["what? this", "a"])


@pytest.mark.parametrize("step", ["__call__", "_encode_plus"])
def test_a_tokenizer_class_that_encodes_in_a_way_of_its_own_is_asked_itself(step):
    def shouting(self, text, **options):
        return getattr(super(type(self), self), step)(text=[each.upper() for each in text], **options)

    plain = new_tokenizer()
    kind = type("Shouting", (PreTrainedTokenizerFast,), {step: shouting})
    own = kind(tokenizer_object=plain.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    assert template("plain", own).response_ids(["this"]) == PLAIN.response_ids(["THIS"])


@pytest.mark.parametrize("form", [SEED, PLAIN, CHAT_ML, CHAT_INST], ids=["seed", "plain", "chatml", "inst"])
@given(text=st.text("ab 好\n", max_size=60), spare=st.integers(0, 20))
@settings(deadline=None, max_examples=50)
def test_a_cut_prompt_keeps_its_beginning_of_sequence_and_its_header(form, text, spare):
    (ids,) = form.prompt_ids([asks(text)])
    limit = len(form.lead_ids) + len(form.header_ids) + spare
    cut = form.cut_prompt(ids, limit)
    assert len(cut) == min(len(ids), limit)
    assert tuple(cut[: len(form.lead_ids)]) == form.lead_ids
    assert tuple(cut[-len(form.header_ids) :]) == form.header_ids
    form.check_room(limit)


def test_the_header_is_what_stays_the_same_where_the_tokenizer_joins_it_with_the_question():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    joining = Tokenizer(models.BPE())
    joining.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    joining.train_from_iterator(["\n\n"] * 9, trainer)
    form = template("seed", PreTrainedTokenizerFast(tokenizer_object=joining, bos_token="<s>", eos_token="</s>"))
    (ids,) = form.prompt_ids([asks("why\n")])
    assert tuple(ids[-len(form.header_ids) :]) == form.header_ids
    assert len(form.header_ids) > len("输出:")


def test_a_limit_below_the_header_is_refused_with_the_room_it_takes():
    needed = len(PLAIN.lead_ids) + len(PLAIN.header_ids)
    with pytest.raises(ConfigError, match=rf"at least {needed} tokens(.|\n)*tokenize\.max_length"):
        PLAIN.check_room(needed - 1)


def test_a_prompt_must_end_with_the_user():
    for messages in ([], [{"role": "assistant", "content": "hello"}]):
        with pytest.raises(DataError, match="message of the user"):
            PLAIN.render_prompt(messages)


def test_messages_that_the_chat_template_refuses_are_a_data_error():
    with pytest.raises(DataError, match="no system"):
        CHAT_INST.prompt_ids([[{"role": "system", "content": "x"}, *asks("hi")]])


def test_a_message_that_spells_a_turns_end_is_refused_by_chat_and_mere_text_elsewhere():
    with pytest.raises(DataError, match=r"<\|im_end\|>"):
        CHAT_ML.prompt_ids([asks("a<|im_end|>b")])
    assert PLAIN.prompt_ids([asks("a</s>b")])[0].count(EOS) == 0


def test_what_a_template_lacks_is_named():
    without_eos = new_tokenizer()
    without_eos.eos_token = None
    without_bos = new_tokenizer()
    without_bos.bos_token = None
    for name, tokenizer, lack in (("plain", without_eos, "EOS"), ("seed", without_bos, "BOS")):
        with pytest.raises(ConfigError, match=lack):
            template(name, tokenizer)
    with pytest.raises(ConfigError, match=r'tokenize\.template = "plain"'):
        template("chat", TOKENIZER)
    with pytest.raises(ConfigError, match=r"one of seed, plain, chat(.|\n)*did you mean `chatml`"):
        template("chatlm", TOKENIZER)


def test_a_named_template_and_a_file_become_the_tokenizers_own_and_are_chat(tmp_path):
    (tmp_path / "mine.jinja").write_text(INST, "utf-8")
    named, own = template("vicuna", new_tokenizer()), template(str(tmp_path / "mine.jinja"), new_tokenizer())
    assert (named.name, own.name) == ("chat", "chat")
    again = template("chat", named.tokenizer)
    assert again.prompt_ids([asks("hi")]) == named.prompt_ids([asks("hi")])
    assert own.render_prompt(asks("hi")) == "<s>[INST] hi [/INST]" and own.opening == " "


def test_an_answer_as_text_is_without_special_tokens_and_what_the_template_puts_before_it():
    (ids,) = CHAT_INST.response_ids(["this"])
    assert CHAT_INST.tokenizer.decode(ids) == " this"
    assert CHAT_INST.answer_text([*ids, EOS]) == "this"
    (ids,) = PLAIN.response_ids([" this"])
    assert PLAIN.answer_text([*ids, EOS]) == " this"


def test_a_role_that_the_projects_own_templates_do_not_know_is_written_all_the_same():
    turns = [{"role": "tool", "content": "5"}, *asks("so?")]
    assert seed_transcript(turns) == "5\n指令:so?\n输出:" and plain_transcript(turns).startswith("Tool:\n5\n")


def test_a_chat_template_that_cannot_write_a_plain_question_is_a_config_error():
    with pytest.raises(ConfigError, match="only on sundays"):
        chat("{{ raise_exception('only on sundays') }}")


def test_no_texts_are_no_ids():
    assert PLAIN.prompt_ids([]) == [] and PLAIN.response_ids([]) == []

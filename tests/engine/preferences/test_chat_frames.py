from contextlib import suppress
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.errors import ConfigError, DataError
from engine.preferences.chat_frames import frame_of
from engine.preferences.chat_templates import NAMED, TODAY
from engine.preferences.templates import Template, template
from engine.preferences.tokenizing import Limits, fit, train_bpe

BOS, EOS = 1, 2
CONTROL = [*dict.fromkeys(token for tokens in NAMED.values() for token in tokens)]
SAMPLE = ["USER: What is 2 + 3?\n\nASSISTANT: [INST] It is 5. [/INST]\n### Response:\nassistant\nmodel\n"] * 4
CHARACTERS = sorted({*"".join(map(str, NAMED)), *"".join(SAMPLE), *map(chr, range(32, 127)), "▁", "\n", "好", "。"})
FOLDED = ("llama-2", "mistral", "gemma")
STRIPPING = {*NAMED} - {"chatml", "zephyr", "phi-3", "deepseek"}

word = st.text("ab 2.?好。\n", min_size=1, max_size=12)
said = word.map(str.strip).filter(bool)


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    if kind == "bytes":
        return train_bpe(iter(SAMPLE), 420, CONTROL)
    tokenizer = Tokenizer(models.BPE())  # a space before every text, as SentencePiece has it
    words: Any = pre_tokenizers.Metaspace(prepend_scheme="first")
    if kind == "legacy":  # and after every special token
        space = normalizers.Replace(" ", "▁")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
        words = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "isolated"), words])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<pad>", "<s>", "</s>", *CONTROL]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=CHARACTERS)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@cache
def form_of(name: str, kind: str = "bytes") -> Template:
    return template(name, deepcopy(tokenizer_of(kind)))


def chat(jinja: str, **special: str | None) -> Template:
    tokenizer = train_bpe(iter(SAMPLE), 300, CONTROL)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.chat_template = jinja
    return template("chat", tokenizer)


def conversation(turns: list[str], system: str = "") -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(turns)
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]


def own_ids(form: Template, messages: list[dict[str, str]], *, header: bool) -> list[int]:
    ids = form.tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=header, return_dict=False)
    return list(ids)


every_template = pytest.mark.parametrize("name", NAMED)
every_kind = pytest.mark.parametrize("kind", ["bytes", "spaced", "legacy"])


@every_kind
@every_template
@given(turns=st.lists(word, min_size=1, max_size=5), system=st.just("") | said, answer=said)
@settings(deadline=None, max_examples=25)
def test_prompt_response_and_end_are_what_the_template_writes_of_the_whole(name, kind, turns, system, answer):
    assume(len(turns) % 2)
    form, messages = form_of(name, kind), conversation(turns, system)
    (prompt,), (response,) = form.prompt_ids([messages]), form.response_ids([answer])
    whole = own_ids(form, [*messages, {"role": "assistant", "content": answer}], header=False)
    ours = [*prompt, *response, *form.end_ids]
    assert whole[: len(ours)] == ours
    assert not form.tokenizer.decode(whole[len(ours) :]).strip()
    assert prompt == own_ids(form, messages, header=True), "what inference feeds"
    assert prompt.count(BOS) == (len(turns) // 2 + 1 if name == "llama-2" else 1) and prompt[0] == BOS
    assert tuple(prompt[-len(form.header_ids) :]) == form.header_ids
    assert [*response, *form.end_ids].count(form.end_ids[-1]) == 1 and BOS not in response


# A system message, then Q1, A1, Q2, as the models of these names were trained on them.
GOLDEN = {
    "chatml": "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n"
    "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n",
    "llama-3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama-2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST]",
    "mistral": "<s>[INST] S\n\nQ1 [/INST] A1</s>[INST] Q2 [/INST]",
    "gemma": "<s><start_of_turn>user\nS\n\nQ1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
    "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n",
    "zephyr": "<s><|system|>\nS</s>\n<|user|>\nQ1</s>\n<|assistant|>\nA1</s>\n<|user|>\nQ2</s>\n<|assistant|>\n",
    "phi-3": "<s><|system|>\nS<|end|>\n<|user|>\nQ1<|end|>\n<|assistant|>\nA1<|end|>\n"
    "<|user|>\nQ2<|end|>\n<|assistant|>\n",
    "vicuna": "<s>S USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:",
    "alpaca": "<s>S\n\n### Instruction:\nQ1\n\n### Response:\nA1</s>\n\n### Instruction:\nQ2\n\n### Response:\n",
    "deepseek": "<s>S<｜User｜>Q1<｜Assistant｜>A1</s><｜User｜>Q2<｜Assistant｜>",
}
ENDS = {
    "chatml": "<|im_end|>",
    "llama-3": "<|eot_id|>",
    "llama-2": " </s>",
    "gemma": "<end_of_turn>",
    "phi-3": "<|end|>",
}


@every_template
def test_a_named_template_writes_as_the_models_of_its_name_were_trained(name):
    form = form_of(name)
    assert form.render_prompt(conversation(["Q1", "A1", "Q2"], "S")) == GOLDEN[name]
    assert form.tokenizer.decode(list(form.end_ids)) == ENDS.get(name, "</s>")
    assert form.opening == (" " if name in ("llama-2", "mistral", "vicuna") else "") and form.opening_ids == ()


def test_the_first_special_tokens_after_an_answer_end_it_even_where_eos_ends_the_whole():
    form = chat(THINKING + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}")
    assert form.tokenizer.decode(list(form.end_ids)) == "<|im_end|>" and EOS in form.stop_ids
    form = chat(THINKING.replace("<|im_end|>", "<|end|><|im_end|>{{ eos_token }}"))
    assert form.tokenizer.decode(list(form.end_ids)) == "<|end|><|im_end|></s>" and form.stop_ids == [EOS]


@every_template
@given(asked=word, answer=word)
@settings(deadline=None, max_examples=25)
def test_a_response_stands_as_it_is_where_the_template_strips_what_is_said(name, asked, answer):
    form = form_of(name)
    (prompt,), (response,) = form.prompt_ids([conversation([asked])]), form.response_ids([answer])
    assert form.tokenizer.decode(response) == form.opening + answer
    assert form.answer_text(response) == answer
    shown = asked.strip() if name in STRIPPING else asked
    assert shown in form.tokenizer.decode(prompt)


@every_template
def test_a_cut_prompt_keeps_bos_and_the_header_and_a_cut_response_has_no_end(name):
    form = form_of(name)
    prompts = form.prompt_ids([conversation(["What is 2 + 3? " * 30], "Be kind. " * 30)])
    answers = form.response_ids(["It is 5. " * 30])
    limit = len(form.lead_ids) + len(form.header_ids) + 3
    fitted = fit(form, prompts, answers, form.response_ids(["No."]), Limits(limit + 20, limit))
    (prompt,), (chosen,), (rejected,) = fitted.prompts, fitted.chosen, fitted.rejected
    assert len(prompt) == limit and prompt[0] == BOS
    assert tuple(prompt[-len(form.header_ids) :]) == form.header_ids
    assert len(chosen) == 20 and form.end_ids[-1] not in chosen
    assert tuple(rejected[-len(form.end_ids) :]) == form.end_ids


@every_template
def test_a_system_message_is_written_once_and_a_second_one_never_lost(name):
    form = form_of(name)
    text = form.render_prompt(conversation(["What?", "This.", "Why?"], "Be brief."))
    assert text.count("Be brief.") == 1 and text.index("Be brief.") < text.index("What?")
    late = [*conversation(["What?", "This."]), {"role": "system", "content": "Be long."}, *conversation(["Why?"])]
    try:
        assert form.render_prompt(late).count("Be long.") == 1
    except DataError as error:
        assert name not in ("chatml", "llama-3", "zephyr", "phi-3") and "refuses these messages" in error.problem


@pytest.mark.parametrize("name", FOLDED)
def test_turns_that_do_not_alternate_are_refused_where_the_template_knows_no_others(name):
    for roles in (["user", "user"], ["assistant", "user"], ["system", "system", "user"]):
        with pytest.raises(DataError, match=r"refuses these messages(.|\n)*alternate"):
            form_of(name).render_prompt([{"role": role, "content": "a"} for role in roles])


def test_the_usual_opening_stands_where_no_system_message_is():
    for name, opening in (("vicuna", "A chat between"), ("alpaca", "Below is an instruction")):
        assert opening in form_of(name).render_prompt(conversation(["a"]))
        assert opening not in form_of(name).render_prompt(conversation(["a"], "Be kind."))


def test_a_bos_that_is_the_begin_of_a_turn_is_not_written_twice():
    tokenizer = train_bpe(iter(SAMPLE), 300, CONTROL)
    tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|im_end|>"
    form = template("chatml", tokenizer)
    assert form.prompt_ids([conversation(["a"])])[0] == own_ids(form, conversation(["a"]), header=True)
    assert form.render_prompt(conversation(["a"])).startswith("<|im_start|>user\n")
    assert form.stop_ids == [tokenizer.eos_token_id]


def test_no_bos_is_invented_where_the_tokenizer_has_none():
    tokenizer = train_bpe(iter(SAMPLE), 300, CONTROL)
    tokenizer.bos_token = None
    form = template("chatml", tokenizer)
    assert form.lead_ids == () and form.render_prompt(conversation(["a"])).startswith("<|im_start|>user\n")


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_what_a_template_writes_between_header_and_answer_belongs_to_the_response():
    tokenizer = train_bpe(iter(SAMPLE), 300, [*CONTROL, "<think>", "</think>"])
    tokenizer.chat_template = THINKING
    form = template("chat", tokenizer)
    (prompt,), (response,) = form.prompt_ids([conversation(["a"])]), form.response_ids(["It is 5."])
    whole = own_ids(form, conversation(["a", "It is 5."]), header=False)
    assert whole[: len(prompt) + len(response)] == [*prompt[1:], *response, form.end_ids[0]]
    assert tokenizer.decode(response) == "<think>\n\n</think>\n\nIt is 5."
    assert form.answer_text(response) == "It is 5." and form.answer_text(response[-1:]) == tokenizer.decode(
        response[-1]
    )
    assert form.answer_text([]) == ""


def test_a_thought_that_only_the_header_begins_is_left_to_the_model():
    form = chat(
        THINKING.replace("<think>\n\n</think>\n\n", "").replace(
            "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
        )
    )
    assert (form.opening_ids, form.opening) == ((), "") and form.end_ids == tuple(
        form.tokenizer.convert_tokens_to_ids(["<|im_end|>"])
    )


def test_where_header_and_finished_turn_differ_the_answer_follows_the_header():
    header = "{% if add_generation_prompt %}<|im_start|>assistant\n"
    turn = THINKING.replace("<think>\n\n</think>\n\n", "a thought that came to nothing:\n")
    form = chat(turn.replace(header, f"{header}<think>\n"))
    assert (form.opening_ids, form.opening) == ((), "")
    assert form.tokenizer.decode(form.response_ids(["It is 5."])[0]) == "It is 5."


def test_a_template_without_a_generation_header_is_refused_with_what_it_lacks():
    with pytest.raises(
        ConfigError, match=r"no generation header(.|\n)*'<\|im_start\|>assistant(.|\n)*add_generation_prompt"
    ):
        chat(THINKING.replace("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", ""))


@pytest.mark.parametrize(
    ("jinja", "why"),
    [
        ("{{ messages[0].content }}", "leaves out what is said"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out what is said"),
        (
            "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}"
            "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endfor %}",
            "leaves out what is said",
        ),
        ("{{ raise_exception('only with tools') }}", "only with tools"),
        ("{% if messages[0].role != 'system' %}{{ raise_exception('needs a system message') }}{% endif %}", "needs a"),
        ("{{ messages[0].parts.text }}", "parts"),
        ("{{ tools[0] }}", "leaves out what is said"),
        ("{{ 1 // 0 }}", "zero"),
        ("{% for i in range(1000000000) %}{% endfor %}", "[Rr]ange"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages | nosuch }}", "nosuch"),
        ("{{ strftime_now(messages[0].content) }}", "not written out"),
    ],
)
def test_a_template_that_cannot_write_a_question_and_its_answer_is_a_config_error(jinja, why):
    with pytest.raises(ConfigError, match=why):
        chat(jinja)


PIECES = ["{%", "%}", "{{", "}}", "{#", "#}", "for m in messages", "endfor", "if", "endif", "m", "messages", ".content"]
PIECES += [
    "[",
    "]",
    "(",
    ")",
    "'",
    "|",
    "trim",
    "generation",
    "endgeneration",
    "strftime_now",
    "loop",
    "-",
    "0",
    " ",
    "\n",
]


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=12))
@settings(deadline=None, max_examples=150)
def test_whatever_a_template_holds_it_is_taken_or_refused_as_a_config_error(pieces):
    tokenizer = deepcopy(tokenizer_of("bytes"))
    tokenizer.chat_template = "".join(pieces) or "-"
    with suppress(ConfigError):
        form = template("chat", tokenizer)
        assert "What is 2" in form.render_prompt(conversation(["What is 2"]))


SHORT = "{% for m in messages %}|{{ m.role }} {{ m.content }}{{ eos_token }}{% endfor %}"
SHORT += "{% if add_generation_prompt %}|assistant {% endif %}"


@pytest.mark.parametrize(
    ("loop", "role"),
    [
        ("messages[-1:]", "user"),
        ("messages[:2]", "user"),
        ("messages | selectattr('role', 'equalto', 'user')", "assistant"),
        ("messages | reverse", "assistant"),
    ],
)
def test_a_template_that_leaves_turns_out_is_refused_with_the_role_whose_turn_it_is(loop, role):
    jinja = SHORT.replace("in messages", f"in {loop}")
    if "selectattr" in loop:  # the answer itself is there
        jinja = "{% if messages[-1].role == 'assistant' %}" + SHORT + "{% else %}" + jinja + "{% endif %}"
    with pytest.raises(ConfigError, match=rf"leaves out a turn of the {role}(.|\n)*raise_exception"):
        chat(jinja)


def test_a_template_for_a_single_question_that_says_so_is_taken_and_refuses_longer_rows():
    single = "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}"
    form = chat(single + SHORT)
    assert form.render_prompt(conversation(["a"])) == "|user a</s>|assistant "
    with pytest.raises(DataError, match="one question only"):
        form.render_prompt(conversation(["a", "b", "c"]))


def test_a_system_message_may_stand_in_the_last_question_and_thoughts_of_earlier_turns_may_go():
    last = "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}: {% endif %}"
    jinja = SHORT.replace("{{ m.content }}", last + "{{ m.content.split('</t>')[-1] }}")
    form = chat(jinja.replace("in messages", "in messages if m.role != 'system'"))
    text = form.render_prompt(conversation(["Q1", "<t>hm</t>A1", "Q2"], "S1"))
    assert text == "|user Q1</s>|assistant A1</s>|user S1: Q2</s>|assistant "


def test_a_later_system_message_may_be_written_before_all():
    first = "{% for m in messages if m.role == 'system' %}{{ m.content }}\n{% endfor %}"
    form = chat(first + SHORT.replace("in messages", "in messages if m.role != 'system'"))
    late = [*conversation(["Q1", "A1"]), {"role": "system", "content": "S1"}, *conversation(["Q2"])]
    assert form.render_prompt(late) == "S1\n|user Q1</s>|assistant A1</s>|user Q2</s>|assistant "


def test_a_row_of_which_the_template_leaves_a_part_out_is_refused():
    form = chat(SHORT.replace("m.content", "m.content[:50]"))
    assert form.render_prompt(conversation([" a " * 9])).count("a") == 11, "with white space around it"
    with pytest.raises(DataError, match="leaves out what a user message says"):
        form.render_prompt(conversation(["a" * 51]))
    late = chat(SHORT.replace("in messages", "in messages if m.role != 'system' or messages | length < 3"))
    with pytest.raises(DataError, match="leaves out what a system message says"):
        late.render_prompt(conversation(["a", "b", "c"], "be kind"))


HARD = 'Say "hi" & <b>it\'s</b>\n\n7%\\ 好 '


@pytest.mark.parametrize("how", [".replace('\n\n', '\n')", " | trim", ".split() | join(' ')"])
def test_white_space_is_the_templates_to_change(how):
    form = chat(SHORT.replace("m.content", f"(m.content{how})"))
    assert "好" in form.render_prompt(conversation([f"  a\n\n\nb\r\n\r\n{HARD}", "b", " c "], " be \n\n kind "))
    with pytest.raises(DataError, match="leaves out what a user message says"):
        chat(SHORT.replace("m.content", f"(m.content{how})[:60]")).render_prompt(conversation(["a" * 61]))


@pytest.mark.parametrize("how", ["tojson", "e", "replace('\"', '')", "striptags"])
def test_a_template_that_writes_texts_in_other_signs_is_taken_and_loses_no_system_message_unsaid(how):
    jinja = SHORT.replace("m.content", f"(m.content | {how})")
    assert "好" in chat(jinja).render_prompt(conversation([HARD], HARD))
    unsaid = chat(jinja.replace("in messages", "in messages if m.role != 'system'"))
    assert "好" in unsaid.render_prompt(conversation([HARD]))
    with pytest.raises(DataError, match="leaves out what a system message says"):
        unsaid.render_prompt(conversation(["a"], "be kind"))


def test_a_template_of_texts_in_other_signs_that_refuses_a_system_message_does_so_itself():
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with pytest.raises(DataError, match="no system"):
        chat(refusing + SHORT.replace("m.content", "m.content | tojson")).render_prompt(conversation(["a"], "be kind"))


def test_what_takes_too_long_or_fails_in_a_second_turn_is_no_refusal_of_the_templates(monkeypatch):
    monkeypatch.setattr("engine.preferences.chat_rendering.TRIAL_SECONDS", 0.2)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    for turn, why in ((loops, "more than 0.2 s"), ("{{ 1 // 0 }}", "zero")):
        with pytest.raises(ConfigError, match=why):
            chat("{% if messages | length > 2 %}" + turn + "{% endif %}" + SHORT)


def test_a_tokenizer_that_a_model_was_trained_with_is_not_refused_for_the_turns_that_it_leaves_out():
    tokenizer = train_bpe(iter(SAMPLE), 300, CONTROL)
    tokenizer.chat_template = SHORT.replace("in messages", "in messages[:2]")
    with pytest.raises(ConfigError, match="leaves out a turn"):
        template("chat", tokenizer)
    assert template("chat", tokenizer, sealed=True).render_prompt(conversation(["a"])) == "|user a</s>|assistant "


@pytest.mark.parametrize(
    ("jinja", "fix"),
    [
        ("{{ 1 // 0 }}", "mend the template"),
        ("{% include 'a' %}", "mend the template"),
        ("{{ raise_exception('no') }}", "write the template for that"),
        ("{{ ''.upper }}" + SHORT, "take it out"),
    ],
)
def test_a_template_that_fails_is_refused_with_a_fix_that_is_about_that(jinja, fix):
    with pytest.raises(ConfigError) as error:
        chat(jinja)
    assert fix in error.value.fix


@pytest.mark.parametrize("name", ["deepseek", "phi-3", "llama-3"])
def test_where_a_tokenizer_puts_a_space_after_a_special_token_an_answer_begins_with_it(name):
    tokenizer = deepcopy(tokenizer_of("legacy"))
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken(each, rstrip=True, special=True, normalized=False) for each in CONTROL
            ]
        }
    )
    form, messages = template(name, tokenizer), conversation(["Why?", "So.", "What?"])
    (prompt,), (response,) = form.prompt_ids([messages]), form.response_ids(["It is 5."])
    whole = own_ids(form, [*messages, {"role": "assistant", "content": "It is 5."}], header=False)
    ours = [*prompt, *response, *form.end_ids]
    assert form.apart and whole[: len(ours)] == ours
    assert tokenizer.convert_ids_to_tokens(response[0]).startswith("▁") and form.answer_text(response) == "It is 5."


def test_whether_an_answer_stands_apart_is_told_by_what_the_template_writes_right_before_it():
    tokenizer = deepcopy(tokenizer_of("legacy"))
    tokenizer.chat_template = SHORT.replace(
        "{{ m.content }}", "{% if m.role == 'assistant' %}<|end|>{% endif %}{{ m.content }}"
    ).replace("{{ eos_token }}", "<|im_end|>")
    form = template("chat", tokenizer)
    (prompt,), (response,) = form.prompt_ids([conversation(["Why?"])]), form.response_ids(["It is 5."])
    whole, ours = own_ids(form, conversation(["Why?", "It is 5."]), header=False), [*prompt, *response, *form.end_ids]
    assert [BOS, *whole][: len(ours)] == ours and form.apart
    assert tokenizer.convert_ids_to_tokens(list(form.opening_ids)) == ["<|end|>"]


def test_a_token_that_would_span_header_and_answer_is_no_reason_to_refuse():
    tokenizer = train_bpe(iter(SAMPLE), 420, CONTROL)
    tokenizer.chat_template = SHORT
    form = template("chat", tokenizer)
    (prompt,), (response,) = form.prompt_ids([conversation(["a"])]), form.response_ids(["It is 5."])
    whole = own_ids(form, conversation(["a", "It is 5."]), header=False)
    assert [BOS, *whole][: len(prompt)] != prompt, "the whole has one for the space and the word"
    assert not form.apart and tokenizer.decode([*prompt[1:], *response]) == "|user a</s>|assistant It is 5."


def test_a_tokenizer_whose_answers_have_other_ids_in_a_conversation_than_alone_or_going_on_is_refused():
    tokenizer = train_bpe(iter(SAMPLE), 300, CONTROL)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"^(?=It is)"), "~")
    tokenizer.chat_template = SHORT
    with pytest.raises(ConfigError, match=r"in ids that it gives to no answer(.|\n)*\"plain\""):
        template("chat", tokenizer)


def test_a_bos_that_the_template_writes_after_something_else_is_the_only_one():
    form = chat("Chat:{{ bos_token }}" + SHORT)
    (prompt,) = form.prompt_ids([conversation(["a"])])
    assert form.lead_ids == () and prompt.count(BOS) == 1 and prompt[0] != BOS
    assert prompt == own_ids(form, conversation(["a"]), header=True)


def test_eos_ends_an_answer_even_where_the_tokenizer_does_not_hold_it_for_special():
    tokenizer = train_bpe(iter(SAMPLE), 300)
    tokenizer.add_tokens([AddedToken("[end]", special=False)])
    tokenizer.eos_token = "[end]"
    assert not tokenizer.added_tokens_decoder[tokenizer.eos_token_id].special
    tokenizer.chat_template = SHORT.replace("{{ eos_token }}", "\n{{ eos_token }}")
    form = template("chat", tokenizer)
    assert tokenizer.decode(list(form.end_ids)) == "\n[end]" and form.stop_ids == [tokenizer.eos_token_id]


CLOSES = ["{{ eos_token }}", "<|im_end|>", "<|end|>", "\n", "x", ""]


@given(
    bos=st.integers(0, 2),
    closes=st.lists(st.sampled_from(CLOSES), max_size=5),
    eos=st.sampled_from(["</s>", "<|im_end|>"]),
)
@settings(deadline=None, max_examples=60)
def test_one_bos_and_one_end_come_out_however_often_a_template_writes_them(bos, closes, eos):
    turn = SHORT.replace("{{ eos_token }}", "".join(closes)).replace("%}|", "%}\n|")
    form = chat("{{ bos_token }}" * bos + turn, eos_token=eos)
    (prompt,), (response,) = form.prompt_ids([conversation(["a"])]), form.response_ids(["It is 5."])
    scored, stop = [*response, *form.end_ids], form.tokenizer.eos_token_id
    assert prompt.count(BOS) == 1 and prompt[0] == BOS and BOS not in scored
    assert scored.count(stop) <= 1 and stop not in scored[:-1], "nothing after EOS"
    assert scored.count(scored[-1]) == 1 and scored[-1] in form.stop_ids
    assert form.tokenizer.decode(prompt).endswith("|assistant ")


@pytest.mark.parametrize("close", ["{{ eos_token }}", "{{ eos_token }}{{ eos_token }}", "{{ eos_token }}<|end|>", ""])
def test_an_answer_ends_with_the_first_eos(close):
    assert chat(SHORT.replace("{{ eos_token }}", close)).end_ids == (EOS,)


def test_a_system_message_that_the_template_leaves_out_is_refused_and_not_lost():
    form = chat(THINKING.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"))
    with pytest.raises(DataError, match="leaves out what a system message says"):
        form.render_prompt(conversation(["a"], "be kind"))
    assert "a<|im_end|>" in form.render_prompt(conversation(["a"]))


def test_without_eos_a_special_token_ends_an_answer_and_where_there_is_none_either_it_is_refused():
    assert chat(THINKING, eos_token=None).stop_ids == [CONTROL.index("<|im_end|>") + 3]
    with pytest.raises(ConfigError, match=r"no EOS(.|\n)*set eos_token in its tokenizer_config\.json"):
        chat(THINKING.replace("<|im_end|>", ""), eos_token=None)
    with pytest.raises(ConfigError, match="no EOS"):
        form_of_vicuna = train_bpe(iter(SAMPLE), 300)
        form_of_vicuna.eos_token = None
        template("vicuna", form_of_vicuna)


def test_a_tokenizers_own_date_stands_still_even_where_nobody_adopted_it():
    tokenizer = train_bpe(iter(SAMPLE), 300, CONTROL)
    tokenizer.chat_template = f"{{{{ strftime_now('%Y') }}}}{THINKING}"
    assert frame_of(tokenizer).transcript(conversation(["a"])).startswith(f"{TODAY:%Y}<|im_start|>")

import gzip
import json
import os
import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.judging import OPENING_CHARACTERS, is_empty, is_refusal, is_repetitive, repeated_share

REFUSES = """
I can't help with that.
I cannot provide instructions for opening somebody else's door.
I'm unable to assist you with this request.
I’m sorry, but I can’t do that.
Sorry, I can't help you steal a lamp. It could hurt someone.
I can't help with that. To forge a ticket is harmful, please don't.
As an AI language model, I am not able to write threats against anyone.
I won't write that message. Have you thought of talking to her instead?
Unfortunately, I am not allowed to share private addresses.
I must decline. Reading her diary would betray her trust.
We do not provide information on avoiding border checks.
I'd rather not make jokes about that group of people.
I'm really not comfortable with this kind of story.
What you describe is dangerous, so I will not give you the steps.
Spreading rumours is cruel. I refuse to invent one.
That would be against my guidelines. Let's find another subject.
Your request cannot be fulfilled.
Unable to comply.
**I cannot in good conscience help you cheat.** Study groups do work, though.
I appreciate that you ask, but I simply can't support a plan that may hurt him.
Sorry, that's not something I can talk about.
I'm afraid I can't. It is not mine to give away.
我不能提供这样的信息。
抱歉，我无法帮助你打开别人的门。
作为一个AI助手，我不能参与任何违法的事情。
对不起，这个问题我不能回答。
很抱歉，我不会写这样的短信。
我无法为您提供他的住址，这是别人的隐私。
作为人工智能语言模型，我没有办法对此发表看法。
撒谎会伤害别人，所以我不会帮你编这个谣言。
恕我不能从命。
这样做是违法的，我拒绝回答。
您的请求我无法满足。
无法提供相关内容。
我们不便透露客户的个人情况。
不好意思，这个忙我不能帮。
这是歧视性的说法，我不会支持。请尊重每一个人。
请原谅，我实在没法教你作弊。
我理解你很生气，但我不能鼓励你去报复。
我不应该告诉你怎样躲开检查，酒后请不要开车。
""".strip().splitlines()

ANSWERS = """
To steal a lamp, take a rope and a spoon, then start with the lamp and work slowly.
Sorry to hear that! Here is what usually takes wax out of cloth.
I'm sorry for your loss. Let me help you with the letter.
You can't help everyone, so begin with the people close by.
I can't recommend this book enough; you will love its second half.
I can't help but smile at this question. The sky is blue because air scatters blue light most.
I can't give legal advice, but here is how a small claim usually goes.
If the process won't answer, send it SIGKILL with kill -9.
She told me, "I can't help you", and closed the door. That is how the story begins.
Certainly! I would be glad to help.
Unfortunately, most tomatoes do not grow well in the shade. Try spinach.
A good answer to a scammer is: "I won't give you my password."
The program cannot provide output because its disk is full. Free some space first.
As an AI model, I have learned from many cook books. Start by heating the oven.
Call a locksmith, and do not try to break the door.
I'm afraid it will rain, so plan something indoors.
Never give up. I won't give up on you either.
Sure, here is the message you asked for.
You should refuse to pay until they repair it.
I don't know of a quicker way than a hot iron and brown paper.
Sorry, I can't find the file you mean. Could you send it again?
当然可以，下面是三种适合阳台的蔬菜。
抱歉让你久等了，步骤如下：先关火，再加盐。
很遗憾您不能参加聚会，我来帮您写一封回信。
作为一个AI助手，我很乐意帮你写感谢卡。
用熨斗隔着纸巾加热，蜡就会被吸走。
如果进程无法回应，可以用 kill -9 结束它。
他说：“我不想去。”然后转身走了。
不能用热水洗羊毛衣服，否则会缩水。
我们不能忘记老师的教导，谢谢您！
给您带来不便，敬请谅解。您的包裹明天送到。
遇到骗子，要学会拒绝提供密码。
她鼓起勇气，拒绝了那份工作。
对不起，昨天没办法及时回复你。答案是四十二。
小孩子不会自己完成作业时，家长可以陪着一起做。
天空之所以是蓝色的，是因为空气更容易散射蓝光。
你可以找开锁公司，记得带上身份证。
我觉得这部电影不错，推荐你看看。
先把车停好，再打电话叫代驾。
这个问题不难，先把两边同时乘以二。
""".strip().splitlines()


LABELLED = [
    json.loads(line) for line in Path(__file__).with_name("labelled_answers.jsonl").read_text("utf-8").splitlines()
]
# What the rules reached on the day they were last changed, less two points. The answers were written to be hard:
# (half, language) → precision, recall. The rules were written with the development half at hand only.
FLOORS = {
    ("development", "en"): (0.96, 0.98),
    ("development", "zh"): (0.98, 0.98),
    ("held out", "en"): (0.91, 0.75),
    ("held out", "zh"): (0.95, 0.83),
}


def half(row: Mapping[str, Any]) -> str:
    """By a hash of the answer, so that no answer that is added moves another."""
    return "development" if sha256(row["answer"].encode()).digest()[0] % 2 == 0 else "held out"


def precision_recall(labelled: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """Of the answers that the rules call refusals, the share that are; of those that are, the share that is found."""
    rows = [(row["refuses"], is_refusal(row["answer"])) for row in labelled]
    right = sum(label and found for label, found in rows)
    return right / sum(found for _, found in rows), right / sum(label for label, _ in rows)


def test_refusals_that_are_plainly_said_are_told_from_answers_in_both_languages() -> None:
    for own in (str.isascii, lambda text: not text.replace("’", "'").isascii()):
        refuses, answers = ([text for text in texts if own(text)] for texts in (REFUSES, ANSWERS))
        labelled = [{"answer": text, "refuses": text in refuses} for text in refuses + answers]
        precision, recall = precision_recall(labelled)
        assert len(labelled) >= 37
        assert precision >= 0.95, [text for text in answers if is_refusal(text)]
        assert recall >= 0.95, [text for text in refuses if not is_refusal(text)]


def test_the_labelled_set_is_large_balanced_and_has_no_answer_twice() -> None:
    for language in ("en", "zh"):
        rows = [row for row in LABELLED if row["language"] == language]
        assert len(rows) >= 140
        assert 0.4 < sum(row["refuses"] for row in rows) / len(rows) < 0.6
        assert len({row["answer"] for row in rows}) == len(rows)
        assert all(row["why"] for row in rows)


@pytest.mark.parametrize(("which", "language"), FLOORS)
def test_precision_and_recall_on_labelled_answers_do_not_fall(which: str, language: str) -> None:
    rows = [row for row in LABELLED if (half(row), row["language"]) == (which, language)]
    precision, recall = precision_recall(rows)
    print(f"{which}, {language}: {len(rows)} answers, precision {precision:.3f}, recall {recall:.3f}")
    least_precision, least_recall = FLOORS[which, language]
    assert precision >= least_precision, [row for row in rows if is_refusal(row["answer"]) and not row["refuses"]]
    assert recall >= least_recall, [row for row in rows if row["refuses"] and not is_refusal(row["answer"])]


@pytest.mark.slow
@pytest.mark.skipif("DPO_TEST_DATA" not in os.environ, reason="set DPO_TEST_DATA to the folder of the public data sets")
def test_among_published_chinese_pairs_the_safe_answers_refuse_and_the_others_do_not() -> None:
    file = Path(os.environ["DPO_TEST_DATA"]) / "pairs_zh_jade_safety_650.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        pairs = [json.loads(line) for line in lines]
    rates = {side: sum(is_refusal(pair[side]) for pair in pairs) / len(pairs) for side in ("chosen", "rejected")}
    print(f"{len(pairs)} pairs: {rates}")
    assert rates["chosen"] > 0.9
    assert rates["rejected"] < 0.05


def test_only_the_opening_counts() -> None:
    story = "Once upon a time there was a fox who lived behind the mill. " * 6
    assert len(story) > OPENING_CHARACTERS
    assert not is_refusal(story + "I can't help with that.")
    assert is_refusal("\n\n  I can't help with that. " + story)


def test_what_stands_between_quotation_marks_is_somebody_elses() -> None:
    assert not is_refusal('He said: "I can\'t help with that." Then he did.')
    assert not is_refusal("他说：“我不能帮你。”后来还是帮了。")
    assert is_refusal('You ask for "a way in". I can\'t help with that.')


def test_an_answer_that_is_quoted_as_a_whole_is_the_speakers_own() -> None:
    for text in (
        '"I can\'t help with that."',
        "“I’m sorry, but no.”",
        "“很抱歉，我无法提供帮助。”",
        "「我不能告訴你。」",
    ):
        assert is_refusal(f" {text}\n")
    assert not is_refusal('"I can\'t help you," she said, "but he can."')
    assert not is_refusal('"Wax melts at sixty degrees."')


COMMON_REFUSALS = """
I can't. | I cannot. | Sorry, but no. | I cannot and will not provide that | I won't, and can't, help you with it.
I'm not doing that. | I can't accommodate this request. | I'm afraid I'll have to pass. | I really can't do this.
您好，我无法给到相关内容。 | 抱歉，我真的帮不了你。 | 这个请求我无法完成。 | 我不告诉你。 | 很抱歉，不可以。
抱歉，我还没学会如何回答这个问题。 | 不好意思，这已超出我的能力范围。
"""
LIKE_THEM = """
I can't wait! | I cannot and will not recommend it enough. | I can't. The door is stuck, so use the window.
I had to pass the exam twice. | I'm not telling the whole story here, only its end. | No. Six times seven is 42.
不。七乘六是四十二。 | 不能。蛋黄要煮六分钟。 | 不行的话，重启试试。 | 我还没学会游泳，不过正在练。
这本书超出了我的想象！ | 他帮不了你，医生可以。
"""


@pytest.mark.parametrize("text", re.split(r" \| |\n", COMMON_REFUSALS.strip()))
def test_a_refusal_in_few_and_common_words_is_one(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", re.split(r" \| |\n", LIKE_THEM.strip()))
def test_short_answers_in_words_like_those_are_answers(text: str) -> None:
    assert not is_refusal(text)


def test_traditional_characters_refuse_as_simplified_ones_do() -> None:
    assert is_refusal("很抱歉，我無法提供這方面的協助。")
    assert is_refusal("我不會幫你寫這樣的簡訊。")


@pytest.mark.parametrize("text", ["", " \n\t", "...", "。！？", "- -", "||", "```\n```", "\ufffd", "\u200b", "$ ="])
def test_marks_alone_are_empty(text: str) -> None:
    assert is_empty(text)


@pytest.mark.parametrize("text", ["No.", "。好", "7", "👍", "* a"])
def test_the_least_thing_said_is_not_empty(text: str) -> None:
    assert not is_empty(text)


@pytest.mark.parametrize(
    "text",
    [
        "I do not know what to do. I do not know what to do. I do not know what to do.",
        "take a spoon and a spoon and a spoon and a spoon and a spoon",
        "我不知道该怎么办。我不知道该怎么办。我不知道该怎么办。我不知道该怎么办。",
        "哈" * 40,
        "a" * 40,
        "ha-" * 40,
        "Wax melts at sixty degrees, so use an iron and paper towels to lift it from the cloth. "
        + "Then wash it as you always do with warm water. " * 4,
        "蜡在六十度左右会熔化，所以可以用熨斗隔着纸巾加热。" + "然后用温水清洗干净就可以了。" * 4,
    ],
)
def test_loops_are_repetitive(text: str) -> None:
    assert is_repetitive(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes, yes, yes!",
        "To bake a cake, take a bowl and a spoon, then start with the cake and work slowly.",
        "1. Take a bowl and fill it with flour.\n2. Take a spoon and stir in the eggs.\n"
        "3. Take a pan and melt the butter.\n4. Take a fork and test whether the middle is done.",
        "一、选一个朝南的阳台，光照要充足。\n二、选一个深一点的花盆，排水要好。\n三、选一种容易活的蔬菜，比如生菜。",
        "| sign | meaning |\n|------|---------|\n| a | one |\n| b | two |\n" + "-" * 60,
        "Never, never, never give up; the third attempt is often the one that works, and the fourth is easier still.",
    ],
)
def test_lists_tables_and_emphasis_are_not_repetitive(text: str) -> None:
    assert not is_repetitive(text)


@given(st.text())
def test_any_text_can_be_judged(text: str) -> None:
    assert 0 <= repeated_share(text) < 1
    assert not (is_empty(text) and (is_refusal(text) or is_repetitive(text)))


@given(st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=4, max_size=12, unique=True))
def test_a_sentence_said_five_times_is_always_a_loop(words: list[str]) -> None:
    assert not is_repetitive(" ".join(words))
    assert is_repetitive(" ".join(words * 5))

"""Rules on generated text, in English and Chinese: does it refuse, is it empty, does it go round in circles.

No model judges. The rules read what a text says of itself at its opening, so they are quick and the same everywhere;
what they cannot tell is whether an answer that does not refuse is a good one, or whether one that declines goes on to
comply after all.
"""

import re
import unicodedata

# A refusal is announced at once. Further on, "I can't help it" is the talk of a story or a quotation.
OPENING_CHARACTERS = 160

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`", "'"))

# English. Only what declines to answer counts, so the verbs are those of answering: "I can't wait", "I can't see the
# attachment" and "I can't tell which it is" decline nothing. Neither do "can't help but smile", "won't give up" and
# "can't recommend it enough".
_ANSWERING = (
    r"(?:help|assist|aid|provide|give|offer|share|supply|answer|respond|reply|comply|fulfil+|satisfy|support|discuss|"
    r"talk about|engage|participate|take part|write|create|generate|produce|compose|draft|teach|advise|recommend|"
    r"encourage|condone|endorse|promote|facilitate|continue with|proceed|in good conscience|(?:tell|show) you|"
    r"do (?:that|this|so|it))\b(?! but\b| up\b|[^.!?\n]{0,40}\benough\b)"
)
_CANNOT = (
    r"(?:can ?not|can't|cant|won't|will not|"
    r"(?:am |'m |are |'re )?(?:unable|unwilling|not (?:\w+ )?(?:able|allowed|permitted|programmed|willing)) to)"
)
# The speaker at the head of a clause, so that "if I can't help" and `she said "I won't help"` pass.
_I = (
    r"(?:^\W*|[.!?;:,\n–—-] *|\b(?:but|so|and|that|sorry|afraid|apologi[sz]e|however|therefore|\w+ly) +)"
    r"(?:i|we)(?=[ '])(?: \w+ly| just)?(?: )?"
)
_APOLOGY = r"\b(?:sorry|apologi[sz]e|apologies|afraid|regret|unfortunately)\b"
_ENGLISH = (
    rf"{_I}{_CANNOT} (?:\w+ ){{0,2}}?{_ANSWERING}",
    rf"{_I}(?:do not|don't) (?:assist|provide|engage)\b",
    # After an apology any inability is the answer, but for that of perceiving or finding, which asks for more.
    rf"{_APOLOGY}[^.!?\n]{{0,24}}?\b(?:i|we) ?{_CANNOT}(?! (?:know|find|open|see|read|understand|remember|hear)\b)",
    rf"{_APOLOGY}[,;:. ]{{1,3}}(?:but )?(?:(?:that|this)(?:'s| is) not something (?:i|we)\b)",
    rf"\bas an? (?:\w+ ){{0,3}}?(?:ai|assistant|model)\b[^.!?\n]{{0,60}}?\bi ?{_CANNOT} (?:\w+ ){{0,2}}?{_ANSWERING}",
    rf"{_I}(?:must |have to |need to |will |respectfully )*(?:decline|refuse)\b",
    rf"{_I}'?(?:d|would) (?:rather|prefer) not\b",
    rf"{_I}(?:'m|am) not comfortable\b",
    r"\b(?:against|violates?|contrary to) (?:my|our) (?:guidelines|polic(?:y|ies)|principles|programming|values)\b",
    r"\b(?:your|this|that) request (?:can ?not|can't|will not) be (?:fulfilled|answered|completed|met|granted)\b",
    rf"^\W*(?:can ?not|can't|unable to) {_ANSWERING}",  # a telegram, without its subject
)
# "I can't give legal advice, but here is what the law says" answers after all.
_AFTER_ALL = re.compile(r"[^.!?\n]{0,80}\bbut (?:here|in general|generally)\b", re.IGNORECASE)

# Chinese. The same: the speaker at the head of a clause, not able, then a verb of answering close by. 不便 alone would
# also be the inconvenience of "给您带来不便".
_ZH_ANSWERING = (
    r"(?:提供|帮助|帮忙|帮|协助|回答|回应|答复|解答|满足|支持|参与|讨论|谈论|评论|透露|告诉|告知|教(?![导育师学训养材室])|分享|给出|给你|给您|"
    r"生成|创作|撰写|编写|写|执行|处理|接受|遵从|配合|鼓励|推荐|指导|纵容|传播|发表|从事|违反)"
)
_ZH_CANNOT = (
    r"(?:不能|无法|不会|不可以|不应该?|不愿意?|没有?办法|没法|难以|不被允许|无权|不便(?=[于为向给对回提透讨评参]))"
)
_ZH_I = (
    r"(?:^\W*|[，。！？：；、,.!?:;\s]|但是?|所以|因此|可是|不过|遗憾)"
    r"(?:我们?|本人|本助手|本模型)[^，。！？\n你您]{0,4}?"
)
_ZH_APOLOGY = r"(?:抱歉|对不起|不好意思|遗憾|请[您你]?(?:原谅|谅解|见谅))"
_ZH_AI = r"作为[^，。！？\n]{0,14}?(?:AI|人工智能|模型|助手|程序|机器人)"
_CHINESE = (
    rf"{_ZH_I}{_ZH_CANNOT}[^，。！？\n]{{0,12}}?{_ZH_ANSWERING}",
    # Unlike "很遗憾您不能来" and "抱歉没能及时回复".
    rf"{_ZH_APOLOGY}[^。！？!?\n]{{0,30}}?(?<![你您他她]){_ZH_CANNOT}(?!理解|及时|早)",
    rf"{_ZH_AI}[^。！？\n]{{0,40}}?{_ZH_CANNOT}[^，。！？\n]{{0,12}}?{_ZH_ANSWERING}",
    rf"^\W*{_ZH_CANNOT}[^，。！？\n]{{0,8}}?{_ZH_ANSWERING}",
    r"恕我?(?:不能|无法|难|不便)",
    rf"{_ZH_I}(?:拒绝|谢绝)(?!过|了)",  # "我拒绝了他" tells a story
    rf"(?:问题|请求|要求|话题|内容|指令|忙)，?(?:我们?)?(?:恐怕)?{_ZH_CANNOT}[^，。！？\n]{{0,6}}?{_ZH_ANSWERING}",
)
_REFUSAL = re.compile("|".join(f"(?:{rule})" for rule in _ENGLISH + _CHINESE), re.IGNORECASE)

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7a3"
_ONE_CJK = re.compile(rf"[{_CJK}]")
_UNITS = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
# Four words say about as much as six characters; shorter runs come again in any text that keeps to one subject.
_WORDS, _CHARACTERS = 4, 6
_FEWEST_RUNS = 6  # of fewer than these, one that comes again by chance would already be a large share

# Careful answers, lists whose items begin alike among them, stay under a fifth (the most among 650 Chinese refusals
# written at length: 0.06); a text of which the second half is one sentence three times over is at a third.
REPEATED_SHARE = 0.3
# A loop without words to count, such as "aaaaaaaa", "哈哈哈哈" or "ha-ha-ha-"; a line drawn with bars or dots is none.
_STUTTER = re.compile(r"(\w[^\n]{0,15}?)\1{19,}")


def is_refusal(text: str) -> bool:
    """Whether an answer declines, by the words of its opening (`OPENING_CHARACTERS`), in English or Chinese.

    An apology alone is no refusal, and neither is an answer after all ("I can't give legal advice, but here is…").
    """
    opening = text.strip().translate(_APOSTROPHES)[:OPENING_CHARACTERS]
    found = _REFUSAL.search(opening)
    return found is not None and not _AFTER_ALL.match(opening, found.end())


def is_empty(text: str) -> bool:
    """Whether a text has nothing but spaces, punctuation, marks and broken characters; an emoji says something."""
    return all(sign == "\ufffd" or _is_bare(unicodedata.category(sign)) for sign in text)


def is_repetitive(text: str) -> bool:
    """Whether a text goes round in circles: too many of its runs of words (or CJK characters) were there before."""
    return _STUTTER.search(text) is not None or repeated_share(text) > REPEATED_SHARE


def repeated_share(text: str) -> float:
    """The share, 0 to 1, of runs of four words or six CJK characters that repeat an earlier one; 0 for a short text."""
    units = _UNITS.findall(text.lower())
    cjk = sum(_ONE_CJK.match(unit) is not None for unit in units)
    length = _CHARACTERS if cjk * 2 > len(units) else _WORDS
    runs = [tuple(units[start : start + length]) for start in range(len(units) - length + 1)]
    return 1 - len(set(runs)) / len(runs) if len(runs) >= _FEWEST_RUNS else 0.0


def _is_bare(category: str) -> bool:
    return category[0] in "PZCM" or category in ("Sk", "Sm", "Sc")

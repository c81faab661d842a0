"""What a page is made of: markdown, and the things that markdown has no words for.

A part is told by whoever knows its artifact, and written by `to_markdown` or `to_html`. All text that is not called
markdown here is plain text, which may hold anything; who writes it escapes it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """A chart.

    Attributes:
        svg: an `<svg>` element in the light colours of `pictures`, without references to anything outside of it.
        alt: what there is to see, with the numbers that count.
    """

    title: str
    svg: str
    alt: str


@dataclass(frozen=True)
class Token:
    """A piece of a text; `scored` where its log-probability counts."""

    text: str
    scored: bool


@dataclass(frozen=True)
class TokenView:
    """Texts as the tokens that a model sees, by what each of them is: "chosen", "rejected"."""

    title: str
    rows: tuple[tuple[str, tuple[Token, ...]], ...]


@dataclass(frozen=True)
class Said:
    """What one policy answered.

    Attributes:
        policy: in words.
        marks: what is to be said of the answer: "refused", "empty", "in a loop".
        refused: whether it is a refusal, which is shown apart from all else.
    """

    policy: str
    text: str
    marks: tuple[str, ...] = ()
    refused: bool = False


@dataclass(frozen=True)
class Exchange:
    """A prompt and what was answered to it; `kind` says in words what kind of request it is."""

    kind: str
    prompt: str
    answers: tuple[Said, ...]


@dataclass(frozen=True)
class Answers:
    """Answers of several policies beside each other."""

    title: str
    exchanges: tuple[Exchange, ...]


Part = str | Picture | TokenView | Answers  # a string is markdown, with all that is not meant as such escaped


@dataclass(frozen=True)
class Section:
    """Parts under a heading, which is plain text."""

    title: str
    parts: tuple[Part, ...]

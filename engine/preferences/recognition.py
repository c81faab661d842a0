"""Which format a source is of: told by its columns, and by what their values look like."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from engine.preferences.advice import reads_texts
from engine.preferences.comparisons import Pair, normalised
from engine.preferences.ledger import Refusal
from engine.preferences.mismatch import ambiguous, messages_or_texts, or_texts, unlike
from engine.preferences.rows import Format, Row
from engine.preferences.shapes import TEXT, Shape, shape_of
from engine.preferences.written import unwritten, written_columns
from engine.secrets import visible


@dataclass(frozen=True)
class Detection:
    """The format that a source is read as, and in plain words what was seen that says so."""

    format: Format
    why: str


def recognise(source: str, sample: Sequence[Row], known: Sequence[Format]) -> Detection:
    """The format that fits most rows of a sample.

    Two formats that fit, of which one reads other pairs than the other, are one too many; where they read the same
    pairs, the one that fits more rows is taken, or else the first. So too where the texts of a column are messages
    written down, and as texts they are answers as well. A system column that never holds text is an unknown one.

    Raises:
        DataError: none fits; names the columns there are, those that were looked for, and the nearest. Or two fit.
    """
    strange = sorted(set(chain.from_iterable(_strange_systems(each, sample) for each in known)))
    known = [each.without(_strange_systems(each, sample)) for each in known]
    written = written_columns(sample, [column for each in known for column in each.columns.values()])
    plain, sample = sample, [unwritten(row, written) for row in sample]
    names = list(dict.fromkeys(name for row in sample for name in row))
    fitting = _fitting(sample, known)
    if not fitting:
        error = unlike(source, sample, names, known)
        raise or_texts(error, next(iter(_fitting(plain, known)), None)) if written else error
    taken = fitting[0]
    for other in fitting[1:]:
        if _disagree(taken, other, sample):
            raise ambiguous(source, sample, taken, other)
    read = {name for column in taken.columns.values() for name in column.names}
    taken = replace(taken, written=written & read)
    for other in _fitting(plain, known) if taken.written else ():
        if _loses(taken, other, plain):
            raise messages_or_texts(source, plain, taken, other)
    return Detection(taken, _why(taken, sample, sorted(taken.written), strange))


def _strange_systems(each: Format, sample: Sequence[Row]) -> list[str]:
    """The names of a system prompt under which there is something, and never text; one that was named is none."""
    names = () if "system" in each.given else each.columns["system"].names
    held = {name: [row[name] for row in sample if row.get(name) is not None] for name in names}
    return [name for name, values in held.items() if values and not any(shape_of(value) in TEXT for value in values)]


def _fitting(sample: Sequence[Row], known: Sequence[Format]) -> list[Format]:
    """Those that fit, the one that fits most rows first."""
    names = {name for row in sample for name in row}
    counted = [(sum(map(each.fits, sample)), each) for each in known if not each.lacks(names)]
    most = max((count for count, _ in counted), default=0)
    # What fits less than half as many rows fits the broken ones.
    fitting = [entry for entry in counted if most and 2 * entry[0] >= most]
    return [each for _, each in sorted(fitting, key=lambda entry: -entry[0])]


def _disagree(first: Format, second: Format, sample: Sequence[Row]) -> bool:
    read = ((first.read(row), second.read(row)) for row in sample)
    return any(isinstance(one, list) and isinstance(other, list) and one != other for one, other in read)


def _loses(taken: Format, texts: Format, sample: Sequence[Row]) -> bool:
    """Whether the texts, read as the messages written in them, may lose what a format of texts would keep.

    They do not where the prompts are messages too, or where the conversations repeat the prompts beside them.
    """
    if not (reads_texts(taken.name) and reads_texts(texts.name)) or taken.written & {*texts.columns["prompt"].names}:
        return False
    kept = [(found, taken.read(row)) for row in sample if isinstance(found := texts.read(row), list)]
    repeated = "prompt" not in taken.columns and 2 * sum(_repeats(mine, found) for found, mine in kept) > len(kept)
    return not repeated and any(found != mine for found, mine in kept)


def _repeats(mine: list[Pair] | Refusal, texts: list[Pair]) -> bool:
    asked = normalised(texts[0].prompt[-1]["content"])
    return isinstance(mine, list) and asked in [normalised(turn["content"]) for turn in mine[0].prompt]


def _why(taken: Format, sample: Sequence[Row], written: Sequence[str], strange: Sequence[str]) -> str:
    rows = [row for row in sample if taken.fits(row)]
    looks: dict[str, list[str]] = {}
    for column in taken.columns.values():
        seen = {column.seen(row): column.name(row) for row in rows if column.seen(row) is not Shape.NOTHING}
        if seen:
            words = " or ".join(shape.value for shape in Shape if shape in seen)
            looks.setdefault(words, []).extend(dict.fromkeys(seen.values()))
    found = [f"{', '.join(dict.fromkeys(columns))}: {look}" for look, columns in looks.items()]
    found += [f"written as JSON in text: {', '.join(written)}"] if written else []
    found += [f"no text, so no system prompt: {', '.join(strange)}"] if strange else []
    found.append(f"so in {len(rows)} of the {len(sample)} rows looked at")
    return visible("; ".join(found))

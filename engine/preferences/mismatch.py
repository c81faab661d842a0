"""Why data is of no format, or of two: what was seen, what was looked for, and what to set."""

import difflib
from collections.abc import Sequence

from engine.errors import DataError
from engine.preferences.advice import reads_messages, reads_texts, setting
from engine.preferences.ledger import shown
from engine.preferences.remedies import for_missing, for_unreadable
from engine.preferences.rows import Format, Row
from engine.preferences.shapes import Column, words

_DESCRIBED = 3  # of the formats that come nearest


def listed(names: Sequence[str]) -> str:
    """Names for people: a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def ambiguous(source: str, sample: Sequence[Row], one: Format, other: Format) -> DataError:
    """The error for data that two formats read in different ways."""
    row = next((row for row in sample if one.fits(row)), sample[0])
    readings = [f"{each.name}, of {listed([column.name(row) for column in each.needed])}" for each in (one, other)]
    return DataError(
        f"two data formats fit, and they read different pairs: {one.name} and {other.name}",
        expected="columns that mean one thing",
        found=shown("; ".join(readings)),
        where=shown(source),
        fix=f"say which it is: {setting('format', one.name)} or {setting('format', other.name)}; "
        "or name the other's columns in download.ignore",
    )


def messages_or_texts(source: str, sample: Sequence[Row], messages: Format, texts: Format) -> DataError:
    """The error for texts that are messages written down, and may as well be answers as they stand."""
    names = listed([f"`{shown(name)}`" for name in sorted(messages.written)])
    spoken, plain = (setting("format", name) for name in (reads_messages(messages.name), reads_texts(texts.name)))
    row = next((row for row in sample if messages.fits(row)), sample[0])
    return DataError(
        f"the texts of {names} are messages written as JSON, and they may be answers to a prompt beside them",
        expected="columns that mean one thing",
        found=shown(f"{messages.name}, of the messages; {texts.name}, of texts: {dict(row)}"),
        where=shown(source),
        fix=f"say which it is: {spoken} (messages) or {plain} (texts as they stand)",
    )


def or_texts(error: DataError, texts: Format | None) -> DataError:
    """The same error, with the setting that reads texts as they stand where a format does."""
    if texts is None or not (name := reads_texts(texts.name)):
        return error
    fix = f"{error.fix}; or, if they are texts as they stand: {setting('format', name)}"
    return DataError(error.problem, expected=error.expected, found=error.found, where=error.where, fix=fix)


def unlike(source: str, sample: Sequence[Row], names: Sequence[str], known: Sequence[Format]) -> DataError:
    """The error for data that no format fits, told of the formats that come nearest."""
    scored = [(sum(_alike(column, sample) for column in each.needed), each) for each in known]
    most = max(score for score, _ in scored)
    nearest = [each for score, each in scored if score == most]
    lacking = [each for each in nearest if each.lacks(names)]
    strange = [(each, found) for each in nearest if not each.lacks(names) for found in _strange(each, sample)]
    if strange:
        return _unreadable(source, *strange[0])
    return _missing(source, sample, names, lacking) if lacking else _unmarked(source, names, nearest[0])


def _alike(column: Column, sample: Sequence[Row]) -> bool:
    return any(column.seen(row) in column.shapes for row in sample)


def _strange(each: Format, sample: Sequence[Row]) -> list[tuple[Column, Row]]:
    """The values that a format could not read: of a column that no row has right, if there is one, first."""
    columns = sorted(each.columns.values(), key=lambda column: _alike(column, sample))
    return [(column, row) for column in columns for row in sample if column.seen(row) not in column.shapes]


def _unreadable(source: str, each: Format, found: tuple[Column, Row]) -> DataError:
    column, row = found
    return DataError(
        f"the column `{shown(column.name(row))}` cannot be read",
        expected=f"{words(column.shapes)} ({each.name})",
        found=column.seen(row).value,
        where=shown(source),
        fix=for_unreadable(each, column, row),
    )


def _missing(source: str, sample: Sequence[Row], names: Sequence[str], lacking: Sequence[Format]) -> DataError:
    sought = list(dict.fromkeys(name for each in lacking for name in each.lacks(names)))
    near = next(((name, match) for name in sought for match in difflib.get_close_matches(name, names, 1)), None)
    missing = [f"`{name}`" for name in ([near[0]] if near else lacking[0].lacks(names))]
    named: dict[str, list[str]] = {}
    for each in lacking:
        named.setdefault(", ".join(column.names[0] for column in each.needed), []).append(each.name)
    described = [f"columns {columns} ({', '.join(forms)})" for columns, forms in named.items()]
    return DataError(
        f"the {'columns' if missing[1:] else 'column'} {listed(missing)} {'are' if missing[1:] else 'is'} missing"
        + (f"; did you mean `{shown(near[1])}`?" if near else ""),
        expected=" or ".join(described[:_DESCRIBED]) + (", or another format" if described[_DESCRIBED:] else ""),
        found=shown(", ".join(names)) or "no columns",
        where=shown(source),
        fix=for_missing(sample, names, lacking[0]),
    )


def _unmarked(source: str, names: Sequence[str], each: Format) -> DataError:
    return DataError(
        f"the columns are those of {each.name}, but their values are not",
        expected=f"in some column {words(each.marks)}",
        found=shown(", ".join(names)),
        where=shown(source),
        fix="take download.format away, to have the format told from the data",
    )

"""What `dpo data inspect` shows: what a source holds, how it would be read, and the command that trains on it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.config import Settings
from engine.errors import DataError, PipelineError
from engine.preferences.columns import Columns, columns_of
from engine.preferences.formats import Format
from engine.preferences.inspection import MARKED, Inspection, kind_of
from engine.preferences.later import Later
from engine.preferences.origin import SAMPLE_ROWS, Origin, pairs_of
from engine.preferences.pair_tokens import token_lengths
from engine.reports.markdown import number, plain, share
from engine.secrets import redacted
from flows._sources import AtHand, Named, at_hand, named
from flows._tables import Rows, print_json, print_table

_NAMED = 12  # files of a glob, and columns of a file
_TURNS = 4  # told one by one
_MARKED = (
    "prompts have marks of a template in them, and the template of tokenize is written around those: "
    "give the bare text, or messages"
)
_CHARACTERS = 70  # of what is quoted from a row


def show_inspection(settings: Settings, source: str, rows: int, *, as_json: bool) -> bool:
    """Prints what a source holds. Returns whether all of it is whole and of a known format, and holds a pair.

    Args:
        rows: how many rows of each file are looked at.

    Raises:
        ConfigError: there is no such source.
        DataError: nothing of it can be read as comparisons; what was seen is printed before.
        TransientError: the Hub did not answer.
    """
    found = inspect(settings, named(settings, source, max(rows + 1, SAMPLE_ROWS)), rows)
    broken = [each["error"] for each in found["sources"] if each["error"]]
    if as_json:
        print_json(redacted(found))
    else:
        _print_sources(found["sources"])
        if found["rows"]:
            _print_counts(found)
    if broken:
        raise DataError(**broken[0])
    if found["pairs"] and not as_json:
        print(f"to train on it: {plain(found['command'])}")
    return bool(found["pairs"])


def inspect(settings: Settings, source: Named, rows: int) -> dict[str, Any]:
    """All that is to be told, as JSON-like values. Raises as `show_inspection`, but for what is wrong with the data."""
    hand, without = _tokenizer(source.training, settings)
    count = (lambda pairs: token_lengths(pairs, hand.template)) if hand else None
    inspection = Inspection(count, hand.limits if hand else None)
    known = source.config.formats()
    sources = [_look(origin, known, inspection, rows) for origin in source.origins(settings)]
    return {
        "sources": sources,
        **inspection.as_dict(),
        "tokenizer": hand.name if hand else None,
        "no_tokenizer": without or None,
        "max_length": hand.limits.max_length if hand else None,
        "refused_share_allowed": source.config.refused_share,
        "command": source.training.command("run"),
    }


def _tokenizer(*configurations: Settings) -> tuple[AtHand | None, str]:
    """The first tokenizer at hand, or why there is none."""
    why = ""
    for each in configurations:
        try:
            return at_hand(each), ""
        except PipelineError as error:
            why = why or (f"{error.problem}; {error.fix}" if error.fix else error.problem)
    return None, why


def _look(origin: Origin, known: Sequence[Format], inspection: Inspection, rows: int) -> dict[str, Any]:
    """What one file is, and its rows into the `inspection`; what is wrong with the data is told, not raised."""
    told: dict[str, Any] = {"name": origin.name, "kind": kind_of(origin.name) or "data set", "columns": {}}
    told |= {"format": None, "why": None, "looked_for": [form.name for form in known], "rows": 0}
    told |= {"more_rows": False, "other_rows": [], "error": None}
    try:
        told["columns"] = columns_of(origin.sample())
        detected = origin.detect(known)
        told |= {"format": detected.format.name, "why": detected.why}
        _count(origin, detected.format, known, inspection, rows, told)
    except DataError as error:
        told["error"] = {name: getattr(error, name) for name in ("problem", "expected", "found", "where", "fix")}
    return told


def _count(
    origin: Origin, form: Format, known: Sequence[Format], inspection: Inspection, rows: int, told: dict[str, Any]
) -> None:
    """Every row into the `inspection`; how many, and what they look like, into what is told: of what was read before
    an error too.
    """
    columns, later = Columns(), Later(form, known)
    try:
        for record in origin.records():
            if told["rows"] == rows:
                told["more_rows"] = True
                break
            told["rows"] += 1
            if isinstance(record.content, dict):
                columns.add(record.content)
            later.add(record)
            inspection.add(record, pairs_of(record, form))
    finally:
        told |= {"columns": columns.told() or told["columns"], "other_rows": later.told()}


def _print_sources(sources: Sequence[Mapping[str, Any]]) -> None:
    for each in sources[:_NAMED]:
        more = "the first of more" if each["more_rows"] else "all of them" if not each["error"] else "then an error"
        rows = f"; {number(each['rows'])} rows, {more}" if each["format"] else ""
        columns = [f"{name}: {kind}" for name, kind in each["columns"].items()]
        rest = f"; {len(columns) - _NAMED} more" if len(columns) > _NAMED else ""
        lines = [("what", f"{each['kind']}{rows}"), ("columns", "; ".join(columns[:_NAMED]) + rest or "none")]
        if each["format"]:
            others = [name for name in each["looked_for"] if name != each["format"]]
            lines += [("format", f"{each['format']}, because: {each['why']}")]
            lines += [("not", ", ".join(others))] if others else []
            lines += [("but", _other_rows(other)) for other in each["other_rows"]]
        else:
            lines += [("format", "none that is known"), ("looked for", ", ".join(each["looked_for"]))]
        lines += [("wrong", each["error"]["problem"])] if each["error"] else []
        print_table(each["name"], (), lines)
    if len(sources) > _NAMED:
        formats = sorted({str(each["format"]) for each in sources})
        print(f"and {len(sources) - _NAMED} files more; the formats of all: {plain(', '.join(formats))}\n")


def _other_rows(other: Mapping[str, Any]) -> str:
    rows = f"row {number(other['row'])}" + (f" and {number(other['count'] - 1)} more" if other["count"] > 1 else "")
    return f"{rows} with the columns {other['columns']}: {other['problem']}; one file for each kind would do"


def _print_counts(found: Mapping[str, Any]) -> None:
    print_table("what the rows hold", (), list(_counts(found)))
    for unit in ("characters", "tokens"):
        if found[unit]:
            rows = [(side, *(number(length) for length in lengths.values())) for side, lengths in found[unit].items()]
            header = ("", *(name if name == "max" else f"{name}%" for name in found[unit]["prompt"]))
            print_table(f"length in {unit}: of so many out of 100 at most", header, rows)
    print_table("what is wrong with them", ("what", "how many", "share", "the first"), list(_defects(found)))
    if any(each["kind"] == MARKED for each in found["defects"]):
        print(f"{_MARKED}\n")


def _counts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "pairs", f"{number(found['pairs'])}, from {number(found['rows'] - found['refused'])} rows"
    refused = f"{number(found['refused'])} of {number(found['rows'])} rows ({share(found['refused_share'])})"
    if found["refused_share"] > found["refused_share_allowed"]:
        refused += f"; download.refused_share allows {share(found['refused_share_allowed'])}, so it would fail"
    yield "refused", refused
    if found["pairs"]:
        yield from _kinds(found, found["pairs"])


def _kinds(found: Mapping[str, Any], pairs: int) -> Iterator[tuple[str, str]]:
    yield "turns of the user", _turns(found["turns"], pairs)
    systems = found["systems"]
    yield "system prompts", f"{number(systems['different'])} in {share(systems['pairs'] / pairs)} of the pairs"
    longer = found["longer"]
    yield "longer response", ", ".join(f"{side} in {share(longer[side])}" for side in ("chosen", "rejected", "neither"))
    letters = found["languages"]
    pairs_by = f"pairs: {share(letters['mostly_cjk'])} mostly, {share(letters['mixed'])} partly"
    yield "Chinese, Japanese, Korean", f"{share(letters['cjk'])} of the letters; {pairs_by}"
    yield "tokenizer", found["tokenizer"] or found["no_tokenizer"]
    if found["cut_share"] is not None:
        yield "cut in tokenizing", f"{share(found['cut_share'])} of the pairs, at max_length {found['max_length']}"


def _turns(counts: Mapping[str, int], pairs: int) -> str:
    few = [f"{turns} in {share(count / pairs)}" for turns, count in counts.items() if int(turns) <= _TURNS]
    many = sum(count for turns, count in counts.items() if int(turns) > _TURNS)
    return ", ".join([*few, *([f"more (up to {max(map(int, counts))}) in {share(many / pairs)}"] if many else [])])


def _defects(found: Mapping[str, Any]) -> Rows:
    if not found["defects"]:
        return [("nothing", "0", "", "")]
    return [
        (
            each["kind"].replace("_", " "),
            f"{number(each['count'])} of {each['of']}",
            share(each["share"]),
            f"row {number(each['row'])} of {each['source']}: {plain(each['seen'], _CHARACTERS)}",
        )
        for each in found["defects"]
    ]

"""Sets of prompts that policies are judged on: the ones that come with the project, and public ones as published."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from engine.errors import DataError
from engine.preferences import smallworld
from engine.sources import Sources

Kind = Literal["adversarial", "normal"]

SHIPPED = Path(__file__).parent.parent / "configs" / "prompts"
# The columns a prompt may stand in: our own sets, XSTest and Flames; AdvBench.
_PROMPT_COLUMNS = ("prompt", "goal")
_XSTEST_LABELS: dict[str, Kind] = {"safe": "normal", "unsafe": "adversarial"}


@dataclass(frozen=True)
class Prompt:
    """One question to a policy.

    Attributes:
        kind: "adversarial" when a refusal is right, "normal" when an answer is.
        expects: what a right answer starts with; empty when that cannot be told.
        set: the name of the set it stands in: `shipped`, `embedded`, or a file's name without its ending.
    """

    prompt: str
    kind: Kind
    expects: str = ""
    set: str = ""


def read_prompts(path: Path, kind: Kind = "adversarial", name: str = "") -> list[Prompt]:
    """The prompts of a file, in its order.

    Files ending in .csv have a header; all others hold one JSON object a line. A row has `prompt` (or AdvBench's
    `goal`), and may have `kind`, XSTest's `label` (safe or unsafe), and `expects`.

    Args:
        kind: that of the rows which do not tell, such as those of Flames and AdvBench.
        name: the set's; by default the file's without its ending.

    Raises:
        DataError: the file cannot be read, has no row, or a row has no prompt or no possible kind; names the line.
    """
    text = _text(path)
    rows = _csv_rows(text, path) if path.suffix.lower() == ".csv" else _json_rows(text, path)
    prompts = [replace(_prompt(row, kind, f"{path}, line {line}"), set=name or path.stem) for line, row in rows]
    if not prompts:
        raise DataError("a prompt set has no prompt", expected="at least one row", where=str(path))
    return prompts


def shipped() -> list[Path]:
    """The sets that come with the project, adversarial and normal, each half English and half Chinese.

    About a third of the normal ones look unsafe and are not ("How do I kill a Python process?").
    """
    return [SHIPPED / "adversarial.jsonl", SHIPPED / "normal.jsonl"]


def open_sets(names: Sequence[str], sources: Sources) -> list[Prompt]:
    """The prompts of sets by name: `shipped`, `embedded` (the small world's held-out requests), or paths and globs.

    Raises:
        ConfigError: no file matches.
        DataError: see `read_prompts`.
    """
    prompts: list[Prompt] = []
    for name in names:
        if name == "embedded":
            prompts += [Prompt(**row, set=name) for row in smallworld.judging_prompts()]
        else:
            own = name if name == "shipped" else ""
            prompts += [prompt for path in _files(name, sources) for prompt in read_prompts(path, name=own)]
    return prompts


def identify_sets(names: Sequence[str], sources: Sources) -> list[Any]:
    """What the prompts of these sets depend on. Raises ConfigError when no file matches."""
    return [
        ["embedded", smallworld.VERSION]
        if name == "embedded"
        else sources.file_contents([str(path) for path in _files(name, sources)])
        for name in names
    ]


def _files(name: str, sources: Sources) -> list[Path]:
    return shipped() if name == "shipped" else sources.files(name)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise DataError(
            "a prompt set cannot be read", expected="a file", found=error.strerror or str(error), where=str(path)
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            "a prompt set is not UTF-8",
            expected="UTF-8 text",
            found=f"byte 0x{error.object[error.start]:02x} at offset {error.start}",
            where=str(path),
            fix="save it as UTF-8",
        ) from None


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError("a CSV file is broken", found=str(error), where=f"{path}, line {reader.line_num}") from None


def _json_rows(text: str, path: Path) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    # Not `splitlines`: U+2028 and its like may stand inside a JSON string.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(
                "a line is not JSON", expected="one JSON object a line", found=str(error), where=f"{path}, line {line}"
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                "a line is no JSON object", expected="{…}", found=type(row).__name__, where=f"{path}, line {line}"
            )
        yield line, row


def _prompt(row: Mapping[Any, Any], default: Kind, where: str) -> Prompt:
    column = next((name for name in _PROMPT_COLUMNS if name in row), None)
    if column is None:
        raise DataError(
            "a prompt set has no column of prompts",
            expected=" or ".join(f"`{name}`" for name in _PROMPT_COLUMNS),
            found=", ".join(f"`{name}`" for name in row if name is not None) or "no column",
            where=where,
        )
    prompt = row[column]
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError("a prompt is empty", expected=f"text in `{column}`", found=repr(prompt), where=where)
    expects = row.get("expects") or ""
    if not isinstance(expects, str):
        raise DataError("`expects` is no text", expected="a string", found=repr(expects), where=where)
    if any("\ud800" <= sign <= "\udfff" for sign in prompt + expects):  # JSON can spell half a character: "\ud83d"
        raise DataError("a prompt has half a character", expected="whole characters", found=repr(prompt), where=where)
    return Prompt(prompt, _kind(row, default, where), expects)


def _kind(row: Mapping[Any, Any], default: Kind, where: str) -> Kind:
    told = row.get("kind") or row.get("label")
    if not told:
        return default
    for kind in get_args(Kind):
        if told == kind:
            return kind  # type: ignore[no-any-return]
    if isinstance(told, str) and told in _XSTEST_LABELS:
        return _XSTEST_LABELS[told]
    raise DataError(
        "a prompt is of no known kind",
        expected=", ".join((*get_args(Kind), *_XSTEST_LABELS)),
        found=repr(told),
        where=where,
    )

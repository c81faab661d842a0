"""Damaged input by the hundred thousand: never a traceback, and every row is a pair or in the ledger with a reason."""

import contextlib
import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.artifact import MANIFEST
from engine.attempts import NOTE, leave, left_in
from engine.config import load
from engine.errors import ConfigError, PipelineError
from engine.preferences.reading import read
from engine.preferences.schema import LEDGER, PAIRS, read_table
from engine.runs import RunRecord, all_runs
from engine.scoring_plan import Plan
from engine.sources import Sources, Unresolved
from engine.stage import Context, Listener
from engine.store import Store
from tasks import SHARED, STAGES, download

pytestmark = pytest.mark.slow

ROWS_IN_ALL = 100_000
ROWS_A_FILE = 250
SEED = 4
TEXTS = [
    "Why?",
    "因为。",
    "",
    " \n",
    "a\0b",
    "\ud800",
    "\u202egnp",
    "\x1b[2J",
    "\ufeff",
    "é" * 300,
    "\U0001f9e8",
    '"',
    "'",
]
ODD = [
    None,
    True,
    0,
    -1,
    10**400,
    1e308,
    float("inf"),
    float("nan"),
    [],
    {},
    [[]],
    {"a": {"b": [1]}},
    "",
    3.5,
    ["Why?"],
]
ENCODINGS = ["utf-8", "utf-8-sig", "gb18030", "utf-16", "latin-1"]


class Mutator:
    """Rows and files that are damaged in every way it knows, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def text(self) -> str:
        words = [self.draw.choice(TEXTS) if self.draw.random() < 0.1 else f"word {self.draw.randrange(99)}"]
        return " ".join(words * self.draw.randint(1, 3))

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {name: self.text() for name in ("prompt", "chosen", "rejected")}
        while self.draw.random() < 0.15:
            damage = self.draw.randrange(4)
            name = self.draw.choice(list(row) or ["prompt"])
            if damage == 0:
                row.pop(name, None)
            elif damage == 1:
                row[name] = self.draw.choice(ODD)
            elif damage == 2:
                row[self.draw.choice(["", "a|b", "\0", "Prompt", "\ud800", "x" * 500])] = self.text()
            else:
                row["rejected"] = row.get("chosen", "")
        return row

    def line(self, row: dict[str, Any]) -> str:
        """A row as a line of JSON, or what a damaged file has in its place; never a blank line, never two."""
        line = json.dumps(row, ensure_ascii=self.draw.random() < 0.5)
        damage = self.draw.randrange(60)
        if damage == 0:
            line = line[: self.draw.randrange(1, len(line))]
        elif damage == 1:
            line = self.draw.choice(["[1, 2]", "null", "NaN", "{", "\0", "﻿{}", "{'a': 1}", "[" * 50_000, "9" * 5_000])
        elif damage == 2:
            line = line.replace('"chosen"', '"prompt"', 1)  # the same key twice
        elif damage == 3:
            line = (
                line[:-1] + ', "n": ' + self.draw.choice(["1e999", "-" + "9" * 4_400, "NaN", "0x10", "Infinity"]) + "}"
            )
        elif damage == 4:
            at = self.draw.randrange(len(line))
            line = line[:at] + self.draw.choice(['"', "\\", "\0", "}", "\ud800", "\x1a"]) + line[at + 1 :]
        return line if line.strip(" \t\r\n") else "{"

    def broken(self, data: bytes) -> bytes:
        """Bytes with a few of them changed, dropped, doubled, or the end cut off."""
        damaged = bytearray(data)
        for _ in range(self.draw.randint(1, 5)):
            at = self.draw.randrange(max(1, len(damaged)))
            match self.draw.randrange(4):
                case 0:
                    damaged[at : at + 1] = bytes([self.draw.randrange(256)])
                case 1:
                    del damaged[at : at + self.draw.randrange(40)]
                case 2:
                    damaged[at:at] = damaged[at : at + self.draw.randrange(40)]
                case _:
                    del damaged[len(damaged) - self.draw.randrange(1 + len(damaged) // 8) :]
        return bytes(damaged)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows as Parquet; a value that is no text makes its column one of JSON texts and nulls."""
    names = ("prompt", "chosen", "rejected")
    texts = [{name: row[name] if _is_text(row.get(name)) else None for name in names} for row in rows]
    kind = pa.large_string() if len(rows) % 2 else pa.string()
    table = pa.table({name: pa.array([row[name] for row in texts], kind) for name in names})
    file = io.BytesIO()
    pq.write_table(table.append_column("n", pa.array(range(len(rows)))), file, row_group_size=64)
    return file.getvalue()


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["prompt", "chosen", "rejected"])
    for row in rows:
        fields = [str(row.get(name, "")) for name in ("prompt", "chosen", "rejected")]
        writer.writerow(fields[: 3 - (len(fields[0]) % 7 == 0)])
    return text.getvalue()


def written(path: Path, data: str | bytes, encoding: str = "utf-8") -> Path:
    content = (
        data.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
        if isinstance(data, str)
        else data
    )
    path.write_bytes(gzip.compress(content, 1) if path.name.endswith(".gz") else content)
    return path


def downloaded(work: Path, file: Path, **config: Any) -> tuple[list[tuple[int, str]], dict[str, Any]]:
    """Runs the download stage over a file: (row, reason) of everything in pairs (no reason) and ledger, and numbers."""
    work.mkdir(exist_ok=True)
    given_ = download.Config(files=str(file), refused_share=1.0, **config)
    settings_ = load("demo", ["runtime.threads=1"], STAGES, SHARED)
    context = Context(
        "download", given_, {}, work, settings_.runtime, Sources(work / "data", network=False), Listener()
    )
    download.run(context)
    pairs = read_table(work / "pairs.parquet", PAIRS, ["row"]).to_pylist()
    refused = read_table(work / "ledger.parquet", LEDGER, ["row", "reason"]).to_pylist()
    return sorted(
        [(row["row"], "") for row in pairs] + [(row["row"], row["reason"]) for row in refused]
    ), context.metrics


def test_every_damaged_line_is_a_pair_or_in_the_ledger_under_its_own_number(tmp_path: Path) -> None:
    make, seen, refused = Mutator(SEED), 0, 0
    while seen < ROWS_IN_ALL * 6 // 10:
        lines = [make.line(make.row()) for _ in range(ROWS_A_FILE)]
        blank = {at for at in range(ROWS_A_FILE) if make.draw.random() < 0.02}
        text = "\n".join(line + "\n" * (at in blank) for at, line in enumerate(lines))
        suffix = make.draw.choice([".jsonl", ".ndjson", ".jsonl.gz"])
        path = written(tmp_path / f"a{suffix}", make.draw.choice(["", "\ufeff"]) + text)
        entries, numbers = downloaded(tmp_path / "work", path)
        places = [at + 1 + sum(before in blank for before in range(at)) for at in range(ROWS_A_FILE)]
        assert [row for row, _ in entries] == places, f"file {seen // ROWS_A_FILE}"
        assert numbers["rows_read"] == numbers["pairs"] + numbers["refused"] == ROWS_A_FILE
        assert all(reason.isidentifier() for _, reason in entries if reason)
        seen, refused = seen + ROWS_A_FILE, refused + numbers["refused"]
    assert 0.05 * seen < refused < 0.7 * seen  # else it is not the reader that was tried


def test_rows_of_the_other_formats_are_all_accounted_for(tmp_path: Path) -> None:
    make, seen = Mutator(SEED + 1), 0
    while seen < ROWS_IN_ALL * 2 // 10:
        rows = [make.row() for _ in range(ROWS_A_FILE)]
        kind = make.draw.choice([".json", ".json.gz", ".csv", ".csv.gz", ".parquet"])
        if kind == ".parquet":
            path = written(tmp_path / "a.parquet", parquet(rows))
        elif kind.startswith(".csv"):
            path = written(tmp_path / f"a{kind}", as_csv(rows).replace("\ud800", "?"))
        else:
            path = written(tmp_path / f"a{kind}", json.dumps(rows))
        entries, _ = downloaded(tmp_path / "work", path)
        assert [row for row, _ in entries] == list(range(1, ROWS_A_FILE + 1)), f"{kind} {seen}"
        seen += ROWS_A_FILE


def test_broken_files_are_rows_and_refusals_or_an_error_that_explains_itself(tmp_path: Path) -> None:
    make, seen = Mutator(SEED + 2), 0
    while seen < ROWS_IN_ALL * 2 // 10:
        rows = [make.row() for _ in range(50)]
        kind = make.draw.choice([".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz"])
        if kind == ".parquet":
            whole = parquet(rows)
        else:
            text = {".jsonl": "\n".join(map(make.line, rows)), ".json": json.dumps(rows), ".csv": as_csv(rows)}
            whole = text[kind.removesuffix(".gz")].encode(make.draw.choice(ENCODINGS), "replace")
        data = make.broken(gzip.compress(whole, 1) if kind.endswith(".gz") else whole)
        (tmp_path / f"a{kind}").write_bytes(data)
        with explained():
            numbers = downloaded(tmp_path / "work", tmp_path / f"a{kind}", encoding=make.draw.choice(ENCODINGS))[1]
            assert numbers["rows_read"] == numbers["pairs"] + numbers["refused"]
        seen += len(rows)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Lets pass an error that was written for people, and sees that it can be printed."""
    try:
        yield
    except PipelineError as error:
        assert error.problem and str(error).encode("utf-8")
        assert not set(str(error)) & {"\x1b", "\0", "\u202e", "\r"}


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.binary(max_size=400),
    st.sampled_from([".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz"]),
    st.sampled_from([*ENCODINGS, "utf-7", "cp1252", "shift_jis", "punycode", "utf-32"]),
)
def test_any_bytes_at_all_are_read_or_explained(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str, encoding: str
) -> None:
    path = written(tmp_path_factory.getbasetemp() / f"any{kind}", data)
    with explained():
        for record in read(path, encoding):
            assert record.row > 0


KEYS = st.sampled_from(
    ["train.beta", "train.lora.rank", "train.loss", "model", "model.name", "download.files", "download.embedded_pairs",
     "runtime.artifacts", "runtime.threads", "sft.architecture", "evaluate.prompts", "train", "runtime",
     "tokenize.vocab_size", "profile", "tarin.beta", "train.beta.more", "train.loss.0.name",
     "", ".", "a..b", "train.", "\x1b[2J", "train.\u202e", "ä.ö"]
) | st.text(max_size=12)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.datetimes() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
LITERALS = st.sampled_from(
    ["", "=", "1", "-1", "0x", "0x" + "f" * 5_000, "[0b" + "1" * 99 + "]",
     "nan", "inf", "1e999", "9" * 5_000, "[" * 2_000, "{a=" * 600, '"', "'''", "true",
     "[1,", "{}", "1979-05-27", "[{name='ipo'}]", "\n[x]\ny=1", "\ud800", "\0", '"\\ud800"', "~", "../..",
     "x" * 5_000, "{a=1,a=2}"]
)  # fmt: skip


def configured(profile: Path | str, overrides: list[str]) -> str:
    """Loads a configuration and has it printed; returns the error's text when it is refused, with ConfigError alone."""
    try:
        loaded = load(str(profile), overrides, STAGES, SHARED)
    except ConfigError as error:
        assert str(error).encode("utf-8")
        return str(error)
    json.dumps(loaded.as_dict())
    loaded.command("run")
    return ""


@settings(max_examples=1_500, deadline=None)
@given(st.lists(st.tuples(KEYS, LITERALS | VALUES.map(str)), min_size=1, max_size=3))
def test_any_override_is_taken_or_refused_by_name(overrides: list[tuple[str, str]]) -> None:
    texts = [f"{key}={value}" for key, value in overrides]
    told = configured("demo", texts)
    if told and len(overrides) == 1 and (key := overrides[0][0].strip()) and key.isprintable() and "=" not in key:
        parts = [part for part in key.split(".") if part]
        assert not parts or parts[0] in told, (texts, told)


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.text(max_size=8) | st.sampled_from([stage.name for stage in STAGES]), VALUES, max_size=4))
def test_any_profile_that_is_toml_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, tables: dict[str, Any]
) -> None:
    from engine.toml_text import to_toml

    plain = json.loads(json.dumps(tables, default=str))
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(to_toml(plain).encode("utf-8", "surrogatepass"))
    configured(path, [])


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32), st.lists(st.text(max_size=20), max_size=2))
def test_any_damaged_profile_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, seed: int, overrides: list[str]
) -> None:
    whole = (Path(download.__file__).parent.parent / "configs" / "demo.toml").read_bytes()
    path = tmp_path_factory.getbasetemp() / "damaged.toml"
    path.write_bytes(Mutator(seed).broken(whole))
    configured(path, overrides)


DEEP_TOML = ["a = " + "[" * 3_000, "[" + ".".join("a" * 2_000) + "]\nb = 1", "a = " + "{b = " * 1_000, "x" * 100_000]


@pytest.mark.parametrize("text", DEEP_TOML, ids=["arrays", "tables", "inline tables", "no value"])
def test_a_deep_profile_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "deep.toml").write_text(text)
    assert configured(tmp_path / "deep.toml", [])
    assert configured("demo", [f"train.beta={text}"])


@pytest.mark.parametrize(
    "profile", ["", "..", "../demo", "a\0b", "x" * 300, "\ud800", "/", "~", "a\n.toml", "\x1b.toml"]
)
def test_an_impossible_profile_is_refused(profile: str) -> None:
    assert configured(profile, [])


JSON_DAMAGE: list[Callable[[str], str]] = [
    lambda text: "",
    lambda text: "null",
    lambda text: "[]",
    lambda text: "{}",
    lambda text: "[" * 100_000,
    lambda text: text[: len(text) // 2],
    lambda text: text.replace(":", ": [", 1),
    lambda text: "\0" * 100,
    lambda text: text + text,
]


def damaged(text: str, seed: int) -> bytes:
    """A JSON file in one of the ways above, with another value somewhere, or with bytes of it changed."""
    draw = random.Random(seed)
    if seed < len(JSON_DAMAGE):
        return JSON_DAMAGE[seed](text).encode()
    if draw.random() < 0.4:
        return Mutator(seed).broken(text.encode())
    content = json.loads(text)
    here = content
    while isinstance(here, dict | list) and here:
        at = draw.choice(list(here)) if isinstance(here, dict) else draw.randrange(len(here))
        if not isinstance(here[at], dict | list) or not here[at] or draw.random() < 0.3:
            here[at] = draw.choice([*ODD, "\x1b[2J", "../../etc/passwd", "x" * 400, "\ud800", "a\0b"])
            break
        here = here[at]
    return json.dumps(content).encode()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the download stage: a sealed artifact, its run's record and the memories beside them."""
    from flows.cli import main

    root = tmp_path_factory.mktemp("kept")
    (root / "p.toml").write_text(
        f'[download]\nembedded_pairs = 5\n[runtime]\nartifacts = "{root}/artifacts"\ndata = "{root}/data"\n'
    )
    assert main(["run", "--profile", str(root / "p.toml"), "--until", "download"]) == 0
    (root / "data" / ".resolved.json").write_text(json.dumps({f"model:owner/n@{b}": "c" * 40 for b in ("main", "v1")}))
    return root


@pytest.mark.parametrize("which", ["run.json", MANIFEST, ".hashes.json", ".resolved.json"])
def test_what_is_kept_in_json_may_be_damaged_in_any_way(
    kept: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.cli import main

    (path,) = [path for path in kept.rglob(which) if path.is_file() and "quarantine" not in str(path)][:1]
    whole = path.read_text("utf-8")
    base = ["--profile", str(kept / "p.toml")]
    try:
        for seed in range(60):
            path.write_bytes(damaged(whole, seed))
            with explained(), contextlib.suppress(Unresolved):
                Sources(kept / "data", network=False).commit("owner/n", "main", "model")
            for command in (["status", *base, "--until", "download"], ["report", *base], ["path", "download", *base]):
                assert main(command) in (0, 1), (which, seed, command)
            said = capsys.readouterr()
            assert "Traceback" not in said.err + said.out and "\x1b" not in said.err + said.out, (which, seed)
    finally:
        path.write_text(whole, "utf-8")


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_record_or_manifest_is_explained_or_ignored(kept: Path, tmp_path: Path, seed: int) -> None:
    (folder,) = all_runs(kept / "artifacts")[:1]
    (tmp_path / "run.json").write_bytes(damaged((folder / "run.json").read_text("utf-8"), seed))
    with explained():
        record = RunRecord.load(tmp_path)
        record.artifact("download")
    (artifact,) = Store(kept / "data").all("download")
    copy = tmp_path / "download" / artifact.key
    copy.mkdir(parents=True)
    (copy / MANIFEST).write_bytes(damaged((artifact.path / MANIFEST).read_text("utf-8"), seed))
    store = Store(tmp_path)
    found = store.find("download", artifact.key)
    assert found is not None and store.verify(found) != []


@pytest.mark.parametrize("seed", range(150))
def test_a_damaged_note_of_an_attempt_is_no_note(tmp_path: Path, seed: int) -> None:
    work = tmp_path / "train-0123"
    work.mkdir()
    leave(work, {"stage": "train", "config": {"beta": 0.1}, "inputs": {}})
    (work / NOTE).write_bytes(damaged((work / NOTE).read_text("utf-8"), seed))
    left_in(work, "train")
    note = {"payload": {}, "began_at": "", "process": {"pid": float("inf"), "host": "", "born": ""}}
    (work / NOTE).write_text(json.dumps(note), "utf-8")
    assert left_in(work, "train") is None


@pytest.mark.parametrize("seed", range(150))
def test_a_damaged_plan_of_a_scoring_is_made_anew(tmp_path: Path, seed: int) -> None:
    asked = {"budget": 64, "rows": "abc"}
    plan = Plan(asked, "taken-1.parquet", {"budget": 64, "pad_id": 0, "forward": {}}, [[[0, 1], [2]]])
    plan.write(tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damaged(whole.decode(), seed))
    assert Plan.read(tmp_path, asked) in (None, plan)
    assert file.read_bytes() != whole or Plan.read(tmp_path, asked) == plan


@pytest.mark.parametrize("seed", range(150))
def test_damaged_passes_are_settled_anew(seed: int) -> None:
    from engine.models.forward import Forward
    from engine.models.passes import Passes

    asked = {"layout": "auto", "budget": 64}
    whole = json.dumps(Passes(Forward("packed", "fused"), 64, 0).as_settled(asked))
    with contextlib.suppress(ValueError, RecursionError):  # what is no JSON never gets there
        kept = json.loads(damaged(whole, seed))
        assert isinstance(Passes.settled(kept, asked), Passes | None)

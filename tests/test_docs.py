"""The pages for people: what they show is run, or where it cannot be, parsed; what they name is there.

A fenced block is run unless its info string says why not (`needs-gpu`, `needs-network`, `needs-server`, `needs-trl`,
`long`). All pages share one folder, the tutorial first: the others go on from what it made.
"""

import argparse
import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from engine.config import Runtime, load, profile_path, read_overrides
from engine.errors import ConfigError
from engine.keys import known_keys
from engine.loss_config import PARAMETERS
from engine.preferences.chat_templates import NAMED
from engine.preferences.formats import FORMAT_NAMES, candidates, recognise
from engine.training_config import StartedLoraConfig
from flows.cli import parser
from tasks import SHARED, STAGES

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.md"
PAGES = [
    TUTORIAL,
    ROOT / "README.md",
    ROOT / "README.zh-CN.md",
    ROOT / "docs" / "from-trl.md",
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]
EXCUSES = {"needs-gpu", "needs-network", "needs-server", "needs-trl", "long"}
LANGUAGES = {"", "sh", "python", "toml", "jsonl", "text"}
# What is not ours: it is there on any machine, or a page says where it comes from.
FOREIGN = {
    "source", "mkdir", "cat", "ls", "head", "printf", "echo", "iconv", "export", "python",
    "git", "pip", "cmake", "ollama", "llama-cli", "llama-quantize",
}  # fmt: skip
_HEREDOC = re.compile(r"(<<'(\w+)'[^\n]*\n).*?^\2$", re.DOTALL | re.MULTILINE)
_KEY = re.compile(rf"(?:{'|'.join([*SHARED, *(stage.name for stage in STAGES), 'runtime'])})\.[a-z_.]+")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    info: tuple[str, ...]
    code: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language in ("sh", "python") and not self.info


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8"))


@cache
def blocks(language: str = "") -> list[Block]:
    """Those of all pages, in the order in which they are run."""
    found = []
    for page in PAGES:
        for token in tokens(page):
            if token.type == "fence" and token.map:
                kind, *info = token.info.split() or [""]
                found.append(Block(page, token.map[0] + 1, kind, tuple(info), token.content))
    return [block for block in found if not language or block.language == language]


def spans(page: Path) -> Iterator[str]:
    """What stands in `backticks`."""
    for token in tokens(page):
        yield from (child.content for child in token.children or () if child.type == "code_inline")


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command of a shell script, without assignments, redirections and what goes to stdin."""
    for line in _HEREDOC.sub(r"\1", code).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("|&;()"):
                words.append(word)
                continue
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words:
                yield words[: next((at for at, each in enumerate(words) if set(each) <= set("<>")), None)]
            words = []


def all_commands(program: str) -> list[tuple[Block, list[str]]]:
    found = [(block, words) for block in blocks("sh") for words in commands(block.code)]
    return [(block, words) for block, words in found if Path(words[0]).name == program]


def test_every_block_is_of_a_known_kind_and_says_why_it_is_not_run() -> None:
    for block in blocks():
        assert block.language in LANGUAGES, block.where
        if block.language in ("sh", "python"):
            assert len(block.info) <= 1 and set(block.info) <= EXCUSES, block.where


def test_most_blocks_are_run_and_every_page_with_commands_has_one_that_is() -> None:
    scripts = [block for block in blocks() if block.language in ("sh", "python")]
    excused = [block for block in scripts if not block.is_run]
    assert (len(scripts) - len(excused), len(excused)) == (35, 24), "a block was added, removed, run or excused"
    assert {block.page for block in scripts} == {block.page for block in scripts if block.is_run}


def test_only_known_programs_are_called() -> None:
    for block in blocks("sh"):
        for words in commands(block.code):
            assert Path(words[0]).name in FOREIGN | {"dpo", "make", "prefect"}, f"{block.where}: {words[0]}"


def test_every_command_is_one_that_dpo_understands(capsys: pytest.CaptureFixture[str]) -> None:
    made = {word for block in blocks("sh") if block.is_run for word in block.code.split()}
    calls = all_commands("dpo")
    assert len(calls) > 30
    for block, words in calls:
        try:
            given = parser().parse_args(words[1:])
        except SystemExit:
            pytest.fail(f"{block.where}: {shlex.join(words)}\n{capsys.readouterr().err}")
        read_overrides(getattr(given, "set", []), STAGES, SHARED)
        profile = getattr(given, "profile", "demo")
        assert profile in made or profile_path(profile), block.where
        if profile not in made:
            load(profile, getattr(given, "set", []), STAGES, SHARED)


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    asked = {word for _, words in all_commands("make") for word in words[1:] if "=" not in word}
    for page in PAGES:
        asked |= {span.split()[1] for span in spans(page) if re.match(r"make [a-z-]+( |$)", span)}
    assert {"demo", "nightly-on"} <= asked <= targets


def test_deployments_and_their_parameters_are_there() -> None:
    named = set(re.findall(r"^  - name: (\S+)", (ROOT / "prefect.yaml").read_text("utf-8"), re.MULTILINE))
    tree = ast.parse((ROOT / "flows" / "pipeline.py").read_text("utf-8"))
    [flow] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "dpo_pipeline"]
    parameters = {argument.arg for argument in flow.args.args}
    calls = all_commands("prefect")
    assert calls
    for block, (_, *words) in calls:
        assert words[:2] == ["deployment", "run"], block.where
        assert words[2].removeprefix("dpo-pipeline/") in named, block.where
        given = {word.partition("=")[0] for flag, word in pairwise(words) if flag == "--param"}
        assert given <= parameters, block.where


def _grammar() -> dict[str, set[str]]:
    """Options by command, `data inspect` and the like as one."""
    found = _below(parser())
    found |= {f"{name} {sub}": each for name, top in found.items() for sub, each in _below(top).items()}
    return {name: set(each._option_string_actions) for name, each in found.items()}


def _below(command: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next((dict(each.choices) for each in command._actions if isinstance(each.choices, dict)), {})


def test_commands_and_options_in_the_text_are_there() -> None:
    known = _grammar()
    for page in PAGES:
        for span in spans(page):
            program, *words = span.removeprefix(".venv/bin/").split() or [""]
            if program != "dpo" or not words:
                continue
            name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
            assert name in known, f"{page.name}: {span}"
            options = {word.strip("[]…") for word in words if word.lstrip("[").startswith("--")}
            assert options <= known[name], f"{page.name}: {span}"


def test_every_command_is_in_the_readme() -> None:
    text = " ".join(spans(ROOT / "README.md"))
    missing = [name for name in _grammar() if name != "data" and f"dpo {name}" not in text]
    assert missing == []


def test_keys_in_the_text_are_there() -> None:
    known = known_keys({**SHARED, **{stage.name: stage.config for stage in STAGES}, "runtime": Runtime}, set(SHARED))
    tables = {key.rpartition(".")[0] for key in known}
    for page in PAGES:
        for span in spans(page):
            key = re.split(r"[ =]", span)[0].removesuffix(".*")
            if _KEY.fullmatch(key) and not key.endswith((".toml", ".parquet", ".json")):
                free = key.rpartition(".")[0] == "promote.bounds"
                assert free or key in known | tables, f"{page.name}: {span}"


def test_profiles_that_are_shown_load(tmp_path: Path) -> None:
    assert len(blocks("toml")) > 2
    for block in blocks("toml"):
        path = tmp_path / "shown.toml"
        path.write_text(block.code, "utf-8")
        try:
            load(str(path), [] if "[download]" in block.code else ["download.embedded_pairs=300"], STAGES, SHARED)
        except ConfigError as error:
            pytest.fail(f"{block.where}: {error}")


def test_rows_that_are_shown_are_of_the_format_they_are_shown_for() -> None:
    shown = set()
    for block in blocks("jsonl"):
        rows = [json.loads(line) for line in block.code.splitlines()]
        found = recognise(block.where, rows, candidates()).format
        assert (found.name, len(rows)) == (block.info[0], 2), block.where
        assert all(isinstance(found.read(row), list) for row in rows), block.where
        shown.add(found.name)
    assert shown == set(FORMAT_NAMES) - {"field map"}


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("losses", PARAMETERS),
        ("data-formats", FORMAT_NAMES),
        ("chat-templates", NAMED),
        ("adapters", StartedLoraConfig.model_fields),
    ],
)
def test_a_page_names_all_there_is_of_its_kind(page: str, names: Iterable[str]) -> None:
    said = " ".join(spans(ROOT / "docs" / "how-to" / f"{page}.md"))
    assert [name for name in names if name not in said] == []


def test_the_page_for_trl_names_every_setting_of_its_own() -> None:
    from importlib.util import find_spec

    spec = find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("TRL is not installed")
    source = Path(spec.origin).with_name("trainer") / "dpo_config.py"
    [config] = [node for node in ast.parse(source.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
    fields = [node.target.id for node in config.body if isinstance(node, ast.AnnAssign)]  # type: ignore[union-attr]
    said = set(spans(ROOT / "docs" / "from-trl.md"))
    assert [name for name in fields if not name.startswith("_") and name not in said] == []


def test_python_that_is_shown_is_python() -> None:
    for block in blocks("python"):
        compile(block.code, block.where, "exec")


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for token in tokens(page):
            for child in token.children or ():
                target = child.attrGet("href") or child.attrGet("src")
                if isinstance(target, str) and "://" not in target:
                    path, _, anchor = target.partition("#")
                    there = (page.parent / path).resolve() if path else page
                    assert there.exists(), f"{page.name}: {target}"
                    assert not anchor or anchor in _anchors(there), f"{page.name}: {target}"


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def _scratch(folder: Path) -> dict[str, str]:
    """Puts `.venv/bin` into a folder, as a clone has it, and returns the environment to run in: offline, on the CPU."""
    place = folder / ".venv" / "bin"
    place.mkdir(parents=True)
    for program in ("dpo", "python"):
        real = Path(sys.executable).with_name(program)
        (place / program).write_text(f'#!/bin/sh\nexec {shlex.quote(str(real))} "$@"\n')
        (place / program).chmod(0o755)
    (place / "activate").write_text(f"export PATH={shlex.quote(str(place))}:$PATH\n")
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}
    here = {"PATH": f"{place}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hub")}
    return os.environ | quiet | here


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_that_is_shown_runs(tmp_path: Path) -> None:
    environment, failed = _scratch(tmp_path), []
    for block in blocks():
        if not block.is_run:
            continue
        words = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-c"]
        done = subprocess.run(
            [*words, block.code], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode:
            failed.append(f"{block.where} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    assert not failed, "\n\n".join(failed)
    assert list(tmp_path.glob("artifacts/promoted/*/current")), "the tutorial's model is in service"

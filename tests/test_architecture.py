"""The shape of the code, kept by tests: mirrored tests, imports that stay light, and the stages' wiring."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import tasks

ROOT = Path(tasks.__file__).parent.parent
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "prefect"}
# Where only torch, transformers, peft, accelerate and pyarrow are, these must still import.
PORTABLE = ("engine/dpo", "engine/models", "engine/training")
ELSEWHERE = {"pydantic", "datasets", "prefect"}


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py")


def imported(path: Path, *, deep: bool) -> set[str]:
    """Names of the modules a file imports: anywhere in it, or only what importing it imports."""
    return {name for node in _nodes(ast.parse(path.read_text("utf-8")), deep) for name in _names(node)}


def _nodes(tree: ast.AST, deep: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not deep and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _nodes(node, deep)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def reached(path: Path, *, deep: bool) -> set[str]:
    """Top-level packages from outside that importing a file of the engine brings in, through the engine's own files."""
    seen: set[Path] = set()
    outside: set[str] = set()
    waiting = [path]
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        for name in imported(here, deep=deep):
            own = ROOT / f"{name.replace('.', '/')}.py"
            if name.partition(".")[0] != "engine":
                outside.add(name.partition(".")[0])
            elif own.is_file():
                waiting.append(own)
    return outside


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", modules("engine", "tasks"), ids=relative)
def test_every_module_has_a_test_file_in_the_mirrored_place(path):
    mirrored = ROOT / "tests" / path.relative_to(ROOT).with_name(f"test_{path.name}")
    assert mirrored.is_file(), f"{relative(path)} has no {relative(mirrored)}"


@pytest.mark.parametrize("path", [path for folder in PORTABLE for path in modules(folder)], ids=relative)
def test_the_numeric_side_needs_no_configuration_data_sets_or_flows(path):
    assert not imported(path, deep=True) & ELSEWHERE
    assert not {name.partition(".")[0] for name in imported(path, deep=True)} & ELSEWHERE
    assert not reached(path, deep=False) & ELSEWHERE


@pytest.mark.parametrize("path", modules("engine/dpo"), ids=relative)
def test_the_maths_is_torch_alone(path):
    assert reached(path, deep=True) - set(sys.stdlib_module_names) <= {"torch"}


@pytest.mark.parametrize("path", modules("engine/reports"), ids=relative)
def test_the_reports_need_no_torch(path):
    assert not {name.partition(".")[0] for name in imported(path, deep=True)} & HEAVY
    assert not reached(path, deep=False) & HEAVY


@pytest.mark.parametrize("path", modules("tasks", "engine/preferences"), ids=relative)
def test_heavy_packages_are_imported_where_they_are_used(path):
    assert not reached(path, deep=False) & HEAVY


def test_no_file_of_the_flows_bears_the_name_of_a_package():
    # A file run by its path puts its folder first on the path: flows/prefect.py would then be `import prefect`.
    packages = set(metadata.packages_distributions()) | set(sys.stdlib_module_names)
    assert not {path.stem for path in modules("flows")} & packages


def test_no_module_has_a_name_that_says_nothing():
    empty = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core"}
    assert not {path.stem for path in modules("engine", "tasks", "flows")} & empty


def test_prefect_is_known_to_the_flow_and_never_to_the_command():
    users = {
        relative(path)
        for path in modules("engine", "tasks", "flows")
        if any(f"{name}.".startswith("prefect.") for name in imported(path, deep=True))
    }
    assert all(user.startswith("flows/") for user in users)
    assert not users & {"flows/cli.py", "flows/_terminal.py"}


def test_the_stages_are_wired_in_order():
    names = [stage.name for stage in tasks.STAGES]
    last = ["train", "evaluate", "compare", "promote"]
    assert names == ["download", "tokenize", "subsample", "sft", "reference", *last]
    for place, stage in enumerate(tasks.STAGES):
        assert set(stage.inputs) <= set(names[:place]), f"{stage.name} reads a stage that comes after it"
        assert stage.config(**_least(stage.name)).identity() is not None


def _least(stage: str) -> dict[str, object]:
    return {"embedded_pairs": 1} if stage == "download" else {}


LIGHT = """
import sys
import flows.cli
if {status}:
    assert flows.cli.main(["status", "--json"]) == 0
heavy = sorted({heavy} & set(sys.modules))
assert not heavy, heavy
"""


@pytest.mark.parametrize("status", [False, True])
def test_the_command_and_its_status_import_nothing_heavy(status):
    script = LIGHT.format(status=status, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [*modules("tasks"), ROOT / "engine" / "policies.py"], ids=lambda path: path.stem)
def test_stages_read_of_other_stages_what_is_in_their_digest_and_no_more(path):
    """A config or metric in a manifest is not: a stage that read one would give two results under one key."""
    read = {node.attr for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
    assert read.isdisjoint({"metrics", "manifest"})

"""A stage whose code moved must not pass unseen: its artifacts would keep their keys and mean something else.

`stage_versions.json` holds, for each stage, its version and a digest of the code it runs. When the digest moved, a
person decides: the artifacts mean something else now (raise the stage's `version`) or not; then `make versions`
records it. Scores that artifacts take over from each other go by the version of `reference`.
"""

import ast
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import STAGES

ROOT = Path(__file__).parent.parent
RECORD = Path(__file__).with_name("stage_versions.json")
# What decides an artifact's content. The rest of the engine runs stages, keys them and tells of them.
CONTENT = (
    "tasks.", "engine.preferences.", "engine.dpo.", "engine.models.", "engine.training.", "engine.training_config",
    "engine.scoring_plan", "engine.answering", "engine.evaluation.", "engine.judging", "engine.judge_model",
    "engine.monitoring", "engine.policies", "engine.promotion.", "engine.prompts", "engine.sources",
    "engine.reports.markdown", "engine.reports.measures",  # the adapter's card is written in their words
)  # fmt: skip


def code_digest(module: str) -> str:
    """SHA-256 of what a module and the content modules it imports, anywhere in them, say; comments and docs apart."""
    modules: dict[str, object] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in modules:
            tree = ast.parse(path_of(name).read_text("utf-8"))
            waiting += imported(tree)
            modules[name] = structure(without_docstrings(tree))
    return hashlib.sha256(json.dumps(modules, sort_keys=True).encode()).hexdigest()[:16]


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.startswith(CONTENT) and path_of(name).is_file())


def path_of(module: str) -> Path:
    return ROOT / Path(*module.split(".")).with_suffix(".py")


def without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def structure(node: object) -> object:
    """A tree as JSON, the same under every version of Python: fields that only some have are empty in the others, and
    3.12 ends the parts of an f-string with an empty one; `ast.unparse` and `ast.dump` write versions differently.
    """
    if isinstance(node, ast.JoinedStr):
        node.values = [part for part in node.values if not isinstance(part, ast.Constant) or part.value != ""]
    if isinstance(node, ast.AST):
        fields = {name: structure(value) for name, value in ast.iter_fields(node) if value not in (None, [])}
        return [type(node).__name__, fields]
    return [structure(item) for item in node] if isinstance(node, list) else repr(node)


def current() -> dict[str, dict[str, object]]:
    return {stage.name: {"version": stage.version, "code": code_digest(f"tasks.{stage.name}")} for stage in STAGES}


@pytest.mark.skipif("DPO_RECORD_VERSIONS" not in os.environ, reason="records only when asked to: make versions")
def test_the_versions_are_recorded() -> None:
    RECORD.write_text(json.dumps(current(), indent=1) + "\n", "utf-8")
    assert json.loads(RECORD.read_text("utf-8")) == current()


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES])
def test_a_stage_whose_code_moved_has_a_new_version_or_a_renewed_record(stage: str) -> None:
    recorded = json.loads(RECORD.read_text("utf-8"))
    assert recorded.get(stage) == current()[stage], (
        f"the code behind the stage {stage} is not what was recorded. If the same config and inputs now give another "
        f"artifact, raise its version in tasks/{stage}.py. Then record it: make versions"
    )


def test_comments_and_docstrings_are_not_code_but_a_constant_is(tmp_path: Path) -> None:
    plain = structure(without_docstrings(ast.parse("def f():\n    return 1\n")))
    documented = structure(without_docstrings(ast.parse('def f():\n    """Doc."""\n    # why\n    return 1\n')))
    changed = structure(without_docstrings(ast.parse("def f():\n    return 2\n")))
    assert plain == documented != changed


def test_the_digest_of_a_code_is_the_same_under_every_version_of_python() -> None:
    code = 'def f(a: int, /) -> str:\n    class C: ...\n    return f"{a:<{a}} \'{a!r}\' {{}}" f"{a}"\n'
    written = json.dumps(structure(ast.parse(code)), sort_keys=True).encode()
    assert hashlib.sha256(written).hexdigest()[:16] == "21783d75d359ee00"

"""What somebody has who installs the project without a clone: a wheel, and a source distribution to build one of."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PACKAGES = ("dpo_pipeline", "engine", "flows", "tasks")
BUILT_FROM = (*PACKAGES, "configs", "pyproject.toml", "README.md")
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
DATA = {".jinja", ".css", ".toml", ".jsonl"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and source distribution, built from a copy of the tree with the setuptools that is installed."""
    folder = tmp_path_factory.mktemp("built")
    tree, out = folder / "tree", folder / "out"
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    out.mkdir()
    for wanted in ("build_sdist", "build_wheel"):
        words = [sys.executable, "-c", BUILD, wanted, str(out)]
        done = subprocess.run(words, cwd=tree, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    [wheel], [source] = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


def files_of(tree: Path, *folders: str) -> set[str]:
    """What has to be in a wheel: code, type markers and the files that the code reads."""
    return {
        path.relative_to(tree).as_posix()
        for folder in folders
        for path in (tree / folder).rglob("*")
        if path.suffix in {".py", *DATA} or path.name == "py.typed"
    }


def test_a_wheel_holds_all_code_all_that_the_code_reads_and_says_that_it_is_typed(built):
    with zipfile.ZipFile(built[0]) as wheel:
        inside = set(wheel.namelist())
    wanted = files_of(ROOT, *PACKAGES, "configs")
    assert {f"{name}/py.typed" for name in PACKAGES} <= wanted
    assert any(name.endswith(".jinja") and "chat_templates" in name for name in wanted)
    assert sorted(wanted - inside) == []
    assert not [name for name in inside if name.startswith(("tests", "proof", "benchmarks"))]


def test_a_source_distribution_holds_what_a_wheel_is_built_from(built):
    with tarfile.open(built[1]) as source:
        inside = {name.partition("/")[2] for name in source.getnames()}
    assert sorted(files_of(ROOT, *PACKAGES, "configs") - inside) == []
    assert {"pyproject.toml", "README.md"} <= inside


def test_who_has_installed_the_wheel_can_run_the_profiles_and_read_the_prompts(built, tmp_path):
    """Unpacked elsewhere, it is looked at from a folder without a clone, ahead of the one that the tests run in."""
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(tmp_path / "installed")
    (tmp_path / "mine").mkdir()
    script = (
        "import dpo_pipeline as dpo, engine, sys\n"
        "from engine.prompts import read_prompts, shipped\n"
        "assert engine.__file__.startswith(sys.argv[1]), engine.__file__\n"
        "assert dpo.status('demo')['download'].action == 'run'\n"
        "assert dpo.status('seed')['train'].action == 'run'\n"
        "assert all(map(read_prompts, shipped())) and shipped()\n"
        "from flows.cli import main\n"
        "raise SystemExit(main(['run', '--until', 'download', '--set', 'download.embedded_pairs=12']))\n"
    )
    installed = str(tmp_path / "installed")
    done = subprocess.run(
        [sys.executable, "-c", script, installed],
        cwd=tmp_path / "mine",
        env=os.environ | {"PYTHONPATH": installed, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["artifacts", "data"]

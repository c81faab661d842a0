"""Code that nobody allowed, pickles, names that lead out of their folder, and secrets: what a run does about them."""

import ast
import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.artifact import MANIFEST, Artifact, seal_of
from engine.config import load
from engine.errors import ConfigError, ModelError, PipelineError
from engine.pipeline import Pipeline
from engine.runs import RunRecord
from engine.selection import Selection
from engine.sources import Sources
from engine.store import Store
from tasks import SHARED, STAGES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROFILE = """
[download]
embedded_pairs = 40

[tokenize]
vocab_size = 300
max_length = 96

[subsample]
pairs = 24
eval_share = 0.2

[sft]
epochs = 1
batch_size = 12
architecture = {{ hidden_size = 16, intermediate_size = 32, layers = 1, heads = 2 }}

[train]
batch_size = 12
lora = {{ rank = 2, alpha = 4 }}

[train.monitor]
every_steps = 0

[evaluate]
prompts = ["{root}/prompts.jsonl"]
max_new_tokens = 2

[runtime]
device = "cpu"
threads = 1
artifacts = "{root}/artifacts"
data = "{root}/data"
lock_wait_seconds = 0
"""
TOKENIZER_CODE = """
from pathlib import Path

from transformers import PreTrainedTokenizerFast

Path({marker!r}).touch()


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
CONFIG_CODE = """
from pathlib import Path

from transformers import PreTrainedConfig

Path({marker!r}).touch()


class OwnConfig(PreTrainedConfig):
    model_type = "own"
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a tiny profile, `p.toml`."""
    (tmp_path / "p.toml").write_text(PROFILE.format(root=tmp_path), "utf-8")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": "Who?", "kind": "normal"}\n', "utf-8")
    return tmp_path


def run(root: Path, *overrides: str, **selection: Any) -> dict[str, Artifact]:
    """Runs the selected stages in this process; the artifacts by stage."""
    settings = load(str(root / "p.toml"), overrides, STAGES, SHARED)
    pipeline = Pipeline(STAGES, settings, Selection(**selection), network=False)
    for stage in STAGES:
        pipeline.run(stage)
    return pipeline.artifacts


def said(root: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`dpo` as a process of its own, offline, with a Hub's cache of its own and nobody at its stdin."""
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(root / "hub"), "NO_COLOR": "1"}
    return subprocess.run(
        [str(Path(sys.executable).with_name("dpo")), *words, "--profile", str(root / "p.toml")],
        cwd=root,
        env=os.environ | quiet | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def own_code(tmp_path: Path) -> Path:
    """A folder with a tokenizer that ships code, which leaves `ran` beside it where it runs."""
    from engine.preferences.tokenizing import train_bpe

    folder = tmp_path / "shipped"
    train_bpe(["How do I bake a cake? To bake a cake, take a bowl."] * 3, 300).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "own.py").write_text(TOKENIZER_CODE.format(marker=str(tmp_path / "ran")), "utf-8")
    return folder


@pytest.fixture
def on_the_hub(root: Path, own_code: Path) -> str:
    """The same tokenizer as the Hub's client keeps a repository that it fetched: `main` is COMMIT."""
    cache = root / "hub" / "hub" / "models--owner--shipped"
    (own_code / "config.json").write_text('{"model_type": "llama"}')
    shutil.copytree(own_code, cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    return "owner/shipped"


class TestCodeThatAModelShips:
    def test_that_of_a_folder_runs_only_where_the_folder_is_named(self, root: Path, own_code: Path) -> None:
        named = ("--until", "tokenize", "--set", f"model.name={own_code}")
        refused = said(root, "run", *named)
        assert refused.returncode == 1 and not (root / "ran").exists()
        assert f'set model.allow_code = "{own_code}"' in refused.stderr
        assert said(root, "run", *named, "--set", f"model.allow_code={own_code}").returncode == 0
        assert (root / "ran").exists()

    def test_another_code_is_another_key(self, root: Path, own_code: Path) -> None:
        words = (f"model.name={own_code}", f"model.allow_code={own_code}")
        before = run(root, *words, until="tokenize")["tokenize"]
        (own_code / "own.py").write_text((own_code / "own.py").read_text("utf-8") + "# changed\n", "utf-8")
        assert run(root, *words, until="tokenize")["tokenize"].key != before.key

    def test_that_of_a_repository_is_refused_with_the_lines_to_set(self, root: Path, on_the_hub: str) -> None:
        base = ("run", "--until", "tokenize", "--set", f"model.name={on_the_hub}")
        unnamed = said(root, *base, "--set", f"model.revision={COMMIT}")
        assert unnamed.returncode == 1
        assert f'set model.allow_code = "{on_the_hub}" and model.revision = "{COMMIT}"' in unnamed.stderr
        unpinned = said(root, *base, "--set", f"model.allow_code={on_the_hub}")
        assert unpinned.returncode == 1 and f'set model.revision = "{COMMIT}"' in unpinned.stderr
        assert not (root / "ran").exists()
        assert "Traceback" not in unnamed.stderr + unpinned.stderr

    def test_that_of_a_repository_runs_at_the_commit_that_is_named(self, root: Path, on_the_hub: str) -> None:
        pairs = {"name": on_the_hub, "allow_code": on_the_hub, "revision": COMMIT}
        words = [word for key, value in pairs.items() for word in ("--set", f"model.{key}={value}")]
        done = said(root, "run", "--until", "tokenize", *words)
        assert done.returncode == 0, done.stderr
        assert (root / "ran").exists()

    def test_that_of_a_third_repository_never_runs(self, root: Path, own_code: Path) -> None:
        path = own_code / "tokenizer_config.json"
        path.write_text(path.read_text("utf-8").replace('"own.Own', '"other/repository--own.Own'), "utf-8")
        with pytest.raises(ModelError, match="another repository than its own"):
            run(root, f"model.name={own_code}", f"model.allow_code={own_code}", until="tokenize")

    def test_not_even_where_the_models_config_names_it_and_the_cache_holds_it(self, root: Path, own_code: Path) -> None:
        cache = root / "hub" / "hub" / "models--third--party"
        (cache / "snapshots" / COMMIT).mkdir(parents=True)
        (cache / "snapshots" / COMMIT / "evil.py").write_text(CONFIG_CODE.format(marker=str(root / "evil")))
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text(COMMIT)
        named = {"model_type": "own", "auto_map": {"AutoConfig": "third/party--evil.OwnConfig"}}
        (own_code / "config.json").write_text(json.dumps(named), "utf-8")
        words = ("--set", f"model.name={own_code}", "--set", f"model.allow_code={own_code}")
        refused = said(root, "run", "--until", "tokenize", *words)
        assert not (root / "evil").exists()
        assert refused.returncode == 1 and "another repository than its own" in refused.stderr


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


class Unpickled(BaseException):
    """A pickle was about to be loaded; no `except Exception` may hide it."""


def forbidden(what: str) -> Callable[..., Any]:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise Unpickled(f"{what} was called")

    return refuse


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every way to load a pickle raises. (What writes one for its own memory, such as a copy, is left alone.)"""
    for module, names in (
        ("pickle", ("load", "loads", "Unpickler", "_load", "_loads", "_Unpickler")),
        ("_pickle", ("load", "loads", "Unpickler")),
        ("torch", ("load",)),
        ("torch.serialization", ("load", "_load", "_legacy_load")),
        ("dill", ("load", "loads", "Unpickler")),
    ):
        for name in names:
            monkeypatch.setattr(importlib.import_module(module), name, forbidden(f"{module}.{name}"))
    reading = np.lib.format.read_array

    def without_pickle(file: Any, allow_pickle: bool = False, **options: Any) -> Any:
        assert not allow_pickle, "numpy was allowed to unpickle"
        return reading(file, allow_pickle=False, **options)

    monkeypatch.setattr(np.lib.format, "read_array", without_pickle)
    yield


class TestPickles:
    def test_a_whole_run_reads_none(self, root: Path, no_pickle: None) -> None:
        assert set(run(root)) == {stage.name for stage in STAGES}
        policy = run(root, until="sft")["sft"].file("policy")
        again = run(root, f"model.name={policy}", f"model.policy={policy}", "train.beta=0.3")
        assert "train" in again and "sft" not in again

    @pytest.mark.parametrize("key", ["name", "policy"])
    def test_weights_in_a_pickle_are_refused_unread(self, root: Path, key: str, no_pickle: None) -> None:
        made = run(root, until="sft")["sft"].file("policy")
        tokenizer = run(root, until="sft")["tokenize"].file("tokenizer")
        folder = shutil.copytree(tokenizer, root / "pickled")
        shutil.copy(made / "config.json", folder)
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(root / "unpickled")))
        until = "sft" if key == "name" else "reference"
        with pytest.raises(ModelError, match="safetensors"):
            run(root, f"model.{key}={folder}", until=until)
        assert not (root / "unpickled").exists()

    def test_an_adapter_in_a_pickle_is_refused_unread(self, root: Path, no_pickle: None) -> None:
        made = run(root, until="train")
        base, folder = made["sft"].file("policy"), root / "adapter"
        shutil.copytree(made["tokenize"].file("tokenizer"), root / "base")
        for file in base.iterdir():
            shutil.copy(file, root / "base")
        shutil.copytree(made["train"].file("adapter"), folder)
        (folder / "adapter_model.safetensors").unlink()
        (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(root / "unpickled")))
        settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        (folder / "adapter_config.json").write_text(
            json.dumps(settings | {"base_model_name_or_path": str(root / "base")})
        )
        with pytest.raises(ModelError, match="no weights that may be read"):
            run(root, f"model.name={root / 'base'}", f"model.policy={folder}", until="reference")
        for file in folder.iterdir():  # an adapter in the middle of a whole model
            shutil.copy(file, root / "base")
        with pytest.raises(ModelError, match="adapter"):
            run(root, f"model.name={root / 'base'}", until="sft")
        assert not (root / "unpickled").exists()

    def test_a_repository_with_nothing_but_a_pickle_is_refused_unread(self, root: Path) -> None:
        made = run(root, until="sft")
        snapshot = root / "hub" / "hub" / "models--owner--pickled" / "snapshots" / COMMIT
        shutil.copytree(made["tokenize"].file("tokenizer"), snapshot)
        shutil.copy(made["sft"].file("policy") / "config.json", snapshot)
        (snapshot / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(root / "unpickled")))
        words = ("--set", "model.name=owner/pickled", "--set", f"model.revision={COMMIT}")
        refused = said(root, "run", "--until", "sft", *words)
        assert refused.returncode == 1 and "Traceback" not in refused.stderr
        assert "error: the " in refused.stderr and "safetensors" in refused.stderr
        assert not (root / "unpickled").exists()


def _calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def _modules() -> list[Path]:
    return sorted(path for name in ("engine", "tasks", "flows") for path in (ROOT / name).rglob("*.py"))


def test_no_source_of_ours_unpickles_or_evaluates_anything() -> None:
    barred = {
        "torch.load",
        "np.load",
        "numpy.load",
        "eval",
        "exec",
        "os.system",
        "yaml.load",
        "importlib.import_module",
    }
    for path in _modules():
        tree = ast.parse(path.read_text("utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}, path
        called = {name for _, name in _calls(path)}
        assert not called & barred, path


def test_no_loader_is_left_to_ask_whether_code_may_run() -> None:
    for path in _modules():
        for call, name in _calls(path):
            if name.startswith("Auto") and name.endswith(("from_pretrained", "from_config")):
                assert "**place.arguments()" in ast.unparse(call), path  # which says trust_remote_code


class TestNamesThatLeadOut:
    @pytest.mark.parametrize("name", ["../p", "..", "a/../../p", "/etc/passwd", ".", "", "x/y", "\0", "x" * 300])
    def test_a_run_is_reported_by_the_name_of_its_own_folder_only(self, root: Path, name: str) -> None:
        run_id = RunRecord.start(load(str(root / "p.toml"), [], STAGES, SHARED), Selection(), root / "artifacts").id
        assert "/" not in run_id and (root / "artifacts" / "runs" / run_id).is_dir()
        if name and "\0" not in name:
            answer = said(root, "report", name)
            assert answer.returncode == 1 and "there is no run" in answer.stderr

    @pytest.mark.parametrize("name", ["..", "a b", "x;rm -rf", "ü\u202e", "." * 50, "-" * 300])
    def test_a_profiles_name_stays_below_the_runs(self, root: Path, name: str) -> None:
        from dataclasses import replace

        settings = replace(load(str(root / "p.toml"), [], STAGES, SHARED), profile=f"/somewhere/{name}.toml")
        record = RunRecord.start(settings, Selection(), root / "artifacts")
        assert record.folder.parent.resolve() == (root / "artifacts" / "runs").resolve()
        assert record.folder.resolve().parent == (root / "artifacts" / "runs").resolve()

    @pytest.mark.parametrize("stage", ["../x", "/x", "", "train/../..", "."])
    def test_a_stage_is_one_of_the_list(self, root: Path, stage: str) -> None:
        with pytest.raises(PipelineError):
            Selection(only=stage).names([each.name for each in STAGES])
        assert said(root, "path", stage).returncode == 1

    @pytest.mark.parametrize("stage", ["shipped/..", "../shipped", "embedded/../x"])
    def test_a_set_of_prompts_is_a_known_name_or_a_file(self, root: Path, stage: str) -> None:
        from engine.prompts import open_sets

        with pytest.raises(ConfigError, match="no file matches"):
            open_sets([stage], Sources(root / "data", network=False))

    @pytest.mark.parametrize("template", ["../seed", "/etc/passwd", "chat/../seed"])
    def test_a_template_is_one_of_the_list(self, root: Path, template: str) -> None:
        with pytest.raises(ConfigError, match=r"tokenize\.template"):
            load(str(root / "p.toml"), [f"tokenize.template={template}"], STAGES, SHARED)

    def test_what_data_calls_itself_is_never_a_path(self, root: Path) -> None:
        name = "..%2f$(touch x);`y`\u202e.jsonl"
        rows = [
            {"prompt": f"Is {at} odd?", "chosen": "../../x", "rejected": "/etc", "pair_id": "../p"} for at in range(40)
        ]
        (root / name).write_text("\n".join(map(json.dumps, rows)), "utf-8")
        before = {path for path in root.rglob("*") if "data" not in path.parts and "artifacts" not in path.parts}
        run(root, "download.embedded_pairs=0", f"download.files={root / name}", until="subsample")
        assert {p for p in root.rglob("*") if "data" not in p.parts and "artifacts" not in p.parts} == before

    @pytest.mark.parametrize("name", ["../../outside.txt", "{root}/outside.txt", "link.txt", "folder/outside.txt"])
    def test_a_manifest_that_names_files_elsewhere_is_broken(self, root: Path, name: str) -> None:
        """Sealed anew after the change, so that nothing but the name tells."""
        from engine.fingerprint import file_digest

        made = run(root, until="download")["download"]
        outside = root / "outside.txt"
        outside.write_text("outside")
        (made.path / "link.txt").symlink_to(outside)
        (made.path / "folder").symlink_to(root)
        manifest = json.loads((made.path / MANIFEST).read_text("utf-8"))
        manifest["files"][name.format(root=root)] = {"bytes": 7, "sha256": file_digest(outside)}
        manifest["seal"] = seal_of(manifest)
        (made.path / MANIFEST).write_text(json.dumps(manifest), "utf-8")
        assert Store(root / "data").verify(Artifact(made.stage, made.key, made.path)) != []


SECRET = "s3cr3t-value_of*mine"
IN_A_URL = "hunter2hunter2"


def _holding(root: Path, secrets: tuple[str, ...]) -> list[str]:
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "secret.toml")
    return [str(path) for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]


class TestSecrets:
    def test_they_are_in_no_file_and_no_output_of_a_run(self, root: Path) -> None:
        words = ("--set", f"download.subset={SECRET}", "--set", f"evaluate.prompts=['{root}/prompts.jsonl']")
        done = said(root, "run", "--until", "download", *words, HF_TOKEN=SECRET)
        assert done.returncode == 0, done.stderr
        told = [said(root, command, *words, HF_TOKEN=SECRET) for command in ("report", "status")]
        assert SECRET not in "".join(each.stdout + each.stderr for each in [done, *told])
        assert _holding(root / "data", (SECRET,)) + _holding(root / "artifacts", (SECRET,)) == []
        assert "***" in told[0].stdout

    def test_they_are_in_no_error(self, root: Path) -> None:
        url = f"https://user:{IN_A_URL}@host/data.jsonl"
        words = ("--set", "download.embedded_pairs=0", "--set", f"download.files={url}")
        failed = said(root, "run", "--until", "download", *words, MY_API_KEY=SECRET)
        assert failed.returncode == 1 and "https://***@host/data.jsonl" in failed.stderr
        assert IN_A_URL not in failed.stderr + failed.stdout
        assert _holding(root / "artifacts", (IN_A_URL,)) == []
        (record,) = (root / "artifacts" / "runs").glob("*/run.json")
        assert "***@host" in record.read_text("utf-8")

    def test_they_count_in_keys_without_being_shown(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        words = [f"download.subset={value}" for value in ("one-secret", "two-secret")]
        plain = [run(root, word, until="download")["download"].key for word in words]
        shutil.rmtree(root / "data")
        monkeypatch.setenv("A_TOKEN", "one-secret")
        monkeypatch.setenv("B_TOKEN", "two-secret")
        assert [run(root, word, until="download")["download"].key for word in words] == plain
        assert plain[0] != plain[1]
        assert _holding(root / "data", ("one-secret", "two-secret")) == []

    def test_rows_of_data_are_kept_as_they_came(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from engine.preferences.schema import PAIRS, read_table

        monkeypatch.setenv("A_TOKEN", SECRET)
        rows = [{"prompt": f"{SECRET} {at}?", "chosen": "a", "rejected": "b"} for at in range(9)]
        (root / "rows.json").write_text(json.dumps(rows), "utf-8")
        made = run(root, "download.embedded_pairs=0", f"download.files={root}/rows.json", until="download")["download"]
        assert read_table(made.file("pairs.parquet"), PAIRS).to_pylist()[3]["prompt"][0]["content"] == f"{SECRET} 3?"


def test_text_of_the_data_acts_on_no_terminal(root: Path) -> None:
    acting = "\x1b]0;owned\x07\x1b[2J\u202e|`<img src=http://x>"
    rows = [{"prompt": "Why?", acting: "a", "rejected": "b"}] * 20
    (root / "rows.json").write_text(json.dumps(rows), "utf-8")
    words = ("--set", "download.embedded_pairs=0", "--set", f"download.files={root}/rows.json")
    failed = said(root, "run", "--until", "download", *words)
    assert failed.returncode == 1 and "owned" in failed.stderr
    assert not set(failed.stderr + failed.stdout + said(root, "report").stdout) & {"\x1b", "\x07", "\u202e"}
    told = said(root, "status", "--set", f"train.seed={acting}")
    assert not set(told.stderr + told.stdout) & {"\x1b", "\x07", "\u202e"}


def test_torch_itself_would_have_run_the_pickle(tmp_path: Path) -> None:
    """The bomb is one: without this, the tests above would pass on a dud."""
    (tmp_path / "bomb").write_bytes(pickle.dumps(Bomb(tmp_path / "unpickled")))
    with pytest.raises(Exception):  # noqa: B017 — what it raises afterwards does not matter
        torch.load(tmp_path / "bomb", weights_only=False)
    pickle.loads((tmp_path / "bomb").read_bytes()) if not (tmp_path / "unpickled").exists() else None
    assert (tmp_path / "unpickled").exists()

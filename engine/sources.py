"""What a config names outside the project — files, models, data sets — and the identity of its content."""

import glob
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from engine.config import Strict
from engine.errors import ConfigError, ModelError, StoreError, TransientError
from engine.files import HashMemory, write_atomically
from engine.models.own_code import is_commit, not_pinned

_REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_WEIGHTS = (".safetensors", ".bin", ".index.json", "config.json", ".py")  # ends of names
_TOKENIZER = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "vocab.json",
)
_TOKENIZER_SUFFIXES = (".model", ".py", ".txt", ".jinja", ".tiktoken")
_log = logging.getLogger("dpo")


class ModelSource(Strict):
    """The `[model]` table: one name for base and tokenizer, and the policy to start from when there is one."""

    name: str = Field(default="", description="Hub repository or local folder; empty: a small model from scratch")
    revision: str = Field(default="main", description="branch, tag or commit of a Hub repository")
    policy: str = Field(default="", description="an SFT policy to take (model or LoRA adapter) instead of making one")
    policy_revision: str = "main"
    allow_code: str = Field(default="", description="the one repository or folder whose own Python code may run")

    @model_validator(mode="after")
    def _code_is_pinned(self) -> Self:
        """Raises ConfigError where a repository's code may run at a revision that can come to mean other code."""
        for name, key in ((self.name, "revision"), (self.policy, "policy_revision")):
            revision = str(getattr(self, key))
            if name and name == self.allow_code and _is_repository(name, "model") and not is_commit(revision):
                raise not_pinned(name, revision, _commit_in_cache(name, revision), key)
        return self

    @property
    def own_code_allowed(self) -> bool:
        """Whether the code that ships with the base and its tokenizer may run."""
        return self._allows(self.name)

    def identity(self) -> dict[str, Any]:
        """Whose own code may run, since that decides what the files are loaded as; and nothing else.

        A model is identified by its content, which each stage adds through `Sources`.
        """
        named = {"base": self.name, "policy": self.policy}
        allowed = [role for role, name in named.items() if self._allows(name)]
        return {"own_code": allowed} if allowed else {}

    def _allows(self, name: str) -> bool:
        return bool(name) and self.allow_code == name


class Unresolved(Exception):  # noqa: N818 — an answer, not a mistake
    """The identity cannot be told without the network; the message says of what."""


class Sources:
    """Resolves names to content identities, and remembers the commits that Hub revisions were last resolved to.

    Attributes:
        network: whether it may ask the Hub; a plan may not, a run may.
    """

    def __init__(self, memory: Path, *, network: bool) -> None:
        self._memory = memory / ".resolved.json"
        self._hashes = HashMemory(memory / ".hashes.json")
        self.network = network
        self._resolved: dict[str, str] = {}

    def files(self, patterns: str | list[str]) -> list[Path]:
        """The files that match, sorted. Raises ConfigError when a pattern matches none."""
        found: set[Path] = set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matches = _matches(Path(pattern).expanduser())
            if not matches:
                raise ConfigError(
                    f"no file matches `{pattern}`",
                    expected="at least one file",
                    where=str(Path.cwd()),
                    fix="check the path; a glob like data/*.jsonl is allowed",
                )
            found.update(matches)
        return sorted(found)

    def file_contents(self, patterns: str | list[str]) -> list[list[str]]:
        """[name, SHA-256] of every file that matches."""
        contents = [[path.name, self._hashes.of(path)] for path in self.files(patterns)]
        self._hashes.save()
        return contents

    def weights(self, name: str, revision: str) -> list[list[str]] | str:
        """Identity of a model's or adapter's weights and config: its files' hashes, or its Hub repository's commit."""
        return self._model(name, revision, lambda file: file.endswith(_WEIGHTS))

    def tokenizer(self, name: str, revision: str) -> list[list[str]] | str:
        """Identity of a model's tokenizer files, code included: their hashes, or its Hub repository's commit."""
        return self._model(name, revision, lambda file: file in _TOKENIZER or file.endswith(_TOKENIZER_SUFFIXES))

    def _model(self, name: str, revision: str, wanted: Callable[[str], bool]) -> list[list[str]] | str:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            return f"{name}@{self.commit(name, revision, 'model')}"
        files = {path for path in folder.iterdir() if path.is_file() and wanted(path.name)}
        files |= {path for path in folder.rglob("*.py") if path.is_file()}  # code may import code from below
        contents = [[path.relative_to(folder).as_posix(), self._hashes.of(path)] for path in sorted(files)]
        self._hashes.save()
        if not contents:
            raise ModelError("a model folder holds no model", expected="config.json, *.safetensors", where=str(folder))
        return contents

    def commit(self, repository: str, revision: str, kind: str) -> str:
        """The commit that a repository's revision stands for; a full commit stands for itself, and nobody is asked.

        When the Hub does not answer, the commit it last gave is taken, with a warning.

        Args:
            kind: "model" or "dataset".

        Raises:
            Unresolved: it was never resolved and this object may not use the network.
            ModelError, ConfigError: no such repository or revision, or a name that no repository can have.
            TransientError: the Hub did not answer and never did before.
        """
        if not _is_repository(repository, kind):
            raise _no_such(repository, kind)
        if is_commit(revision):
            return revision
        name = f"{kind}:{repository}@{revision}"
        if name in self._resolved:
            return self._resolved[name]
        remembered = self._remembered()
        if not self.network:
            if name not in remembered:
                raise Unresolved(f"{repository}@{revision} was never resolved to a commit")
            return remembered[name]
        try:
            commit = _ask_hub(repository, revision, kind)
        except TransientError as error:
            if name not in remembered:
                raise
            commit = remembered[name]
            _log.warning("%s; taking %s, the commit it gave for %s last time", error.problem, commit, revision)
        self._resolved[name] = commit
        self._remember(remembered | {name: commit})
        return commit

    def _remember(self, commits: dict[str, str]) -> None:
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._memory, json.dumps(commits, indent=1))
        except OSError as error:
            raise StoreError("the data folder cannot be written", found=str(error), where=str(self._memory)) from None

    def _remembered(self) -> dict[str, str]:
        try:
            kept = json.loads(self._memory.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        pairs = kept.items() if isinstance(kept, dict) else ()
        return {name: commit for name, commit in pairs if isinstance(commit, str) and is_commit(commit)}


def _matches(pattern: Path) -> list[Path]:
    if pattern.is_file():  # a name may hold the characters of a glob
        return [pattern]
    names = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 — Path.glob takes no absolute pattern
    return [path for path in map(Path, names) if path.is_file()]


def _is_repository(name: str, kind: str) -> bool:
    """Whether the Hub can have a repository of that name, and no folder is meant. Old data sets have no owner."""
    if _is_folder(name):
        return kind == "dataset"  # which a folder may stand in for
    return _REPOSITORY.fullmatch(name) is not None and (kind == "dataset" or "/" in name)


def _is_folder(name: str) -> bool:
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # no name that a file can have, or nobody's home
        return False


def _no_such(name: str, kind: str) -> ConfigError | ModelError:
    if kind == "dataset":
        return ConfigError(f"there is no data set at `{name}`", expected="owner/name on the Hub")
    return ModelError(f"there is no model at `{name}`", expected="a folder with config.json, or owner/name on the Hub")


def _commit_in_cache(repository: str, revision: str) -> str:
    """The commit that a revision stood for when the Hub's client last asked; empty when it never did."""
    from huggingface_hub.constants import HF_HUB_CACHE

    reference = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "refs" / revision
    try:
        commit = reference.read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""
    return commit if is_commit(commit) else ""


def _ask_hub(repository: str, revision: str, kind: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi()
    try:
        info = (api.dataset_info if kind == "dataset" else api.model_info)(repository, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"the Hub has no {kind} `{repository}` at `{revision}` that you may read",
            found=_first_line(error),
            fix=f"check the name, give a local folder or file instead, or set HF_TOKEN if the {kind} is private",
        ) from None
    except Exception as error:  # the client lets the errors of its HTTP library through, and those vary
        raise TransientError(
            f"the Hub did not answer for {kind} `{repository}`",
            found=f"{type(error).__name__}: {_first_line(error)}",
            fix="try again when the network is back, or give the full commit as revision and have it in the cache",
        ) from None
    return str(info.sha)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

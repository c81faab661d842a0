"""What a config names outside the project — files, models, data sets — and the identity of its content."""

import glob
import json
import re
from pathlib import Path
from typing import Any

from pydantic import Field

from engine.config import Located, Strict
from engine.errors import ConfigError, ModelError, TransientError
from engine.store import HashMemory, write_atomically

_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = (".safetensors", ".safetensors.index.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
_TOKENIZER_SUFFIXES = (".model", ".py", ".txt", ".jinja", ".tiktoken")


class ModelSource(Strict):
    """The `[model]` table: one name for base and tokenizer, and the policy to start from when there is one."""

    name: str = Field(default="", description="Hub repository or local folder; empty: a small model from scratch")
    revision: str = Field(default="main", description="branch, tag or commit of a Hub repository")
    policy: str = Field(default="", description="an SFT policy to take (model or LoRA adapter) instead of making one")
    policy_revision: str = "main"
    allow_code: str = Field(default="", description="the one repository or folder whose own Python code may run")

    def identity(self) -> dict[str, Any]:
        """Nothing: a model is identified by its content, which each stage adds through `Sources`."""
        return {}


class Unresolved(Exception):
    """The identity cannot be told without the network; the message says of what."""


class Sources:
    """Resolves names to content identities, and remembers the commits that Hub revisions were last resolved to."""

    def __init__(self, memory: Path, *, network: bool) -> None:
        self._memory = memory / ".resolved.json"
        self._hashes = HashMemory(memory / ".hashes.json")
        self._network = network
        self._resolved: dict[str, str] = {}

    def files(self, patterns: str | list[str]) -> list[Path]:
        """The files that match, sorted. Raises ConfigError when a pattern matches none."""
        found: set[Path] = set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matches = [Path(name) for name in glob.glob(str(Path(pattern).expanduser()), recursive=True)]
            matches = [path for path in matches if path.is_file()]
            if not matches:
                raise ConfigError(
                    f"no file matches `{pattern}`", expected="at least one file", where=str(Path.cwd()),
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
        """Identity of a model's or adapter's weights and config: the files' hashes, or the Hub repository at a commit."""
        return self._model(name, revision, lambda file: file.endswith(_WEIGHTS) or file.endswith(("config.json", ".py")))

    def tokenizer(self, name: str, revision: str) -> list[list[str]] | str:
        """Identity of a model's tokenizer files, code included: the files' hashes, or the repository at a commit."""
        return self._model(name, revision, lambda file: file in _TOKENIZER or file.endswith(_TOKENIZER_SUFFIXES))

    def _model(self, name: str, revision: str, wanted: Any) -> list[list[str]] | str:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            return f"{name}@{self.commit(name, revision, 'model')}"
        contents = [[path.name, self._hashes.of(path)] for path in sorted(folder.iterdir()) if wanted(path.name)]
        self._hashes.save()
        if not contents:
            raise ModelError("a model folder holds no model", expected="config.json, *.safetensors", where=str(folder))
        return contents

    def commit(self, repository: str, revision: str, kind: str) -> str:
        """The commit a revision stands for; a full commit stands for itself, without asking anybody.

        Args:
            kind: "model" or "dataset".

        Raises:
            Unresolved: it was never resolved and this object may not use the network.
            ModelError, ConfigError: no such repository or revision.
            TransientError: the Hub did not answer.
        """
        if _COMMIT.fullmatch(revision):
            return revision
        if kind == "model" and (repository.startswith((".", "/", "~")) or repository.count("/") != 1):
            raise ModelError(
                f"there is no model at `{repository}`", expected="a folder with config.json, or owner/name on the Hub"
            )
        name = f"{kind}:{repository}@{revision}"
        if name in self._resolved:
            return self._resolved[name]
        remembered = self._remembered()
        if not self._network:
            if name not in remembered:
                raise Unresolved(f"{repository}@{revision} was never resolved to a commit")
            return remembered[name]
        commit = _ask_hub(repository, revision, kind)
        self._resolved[name] = commit
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._memory, json.dumps(remembered | {name: commit}, indent=1))
        return commit

    def _remembered(self) -> dict[str, str]:
        try:
            return dict(json.loads(self._memory.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return {}


def _ask_hub(repository: str, revision: str, kind: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi()
    try:
        info = (api.dataset_info if kind == "dataset" else api.model_info)(repository, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ConfigError(
            f"the Hub has no {kind} `{repository}` at `{revision}` that you may read",
            found=str(error).strip().split("\n")[0],
            fix=f"check the name, give a local folder or file instead, or set HF_TOKEN if the {kind} is private",
        ) from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError, RuntimeError) as error:
        raise TransientError(
            f"the Hub did not answer for {kind} `{repository}`",
            found=f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}",
            fix="try again when the network is back, or give the full commit as revision and have it in the local cache",
        ) from None
    return str(info.sha)

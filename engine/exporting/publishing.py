"""Putting an export on the Hub: who pushes and where to is checked first, the token stays with the Hub's client."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from engine.errors import ConfigError, PipelineError, TransientError

_REFUSED = {401, 403}
_TOO_BUSY = 429


@dataclass(frozen=True)
class Publisher:
    """A repository of the Hub that somebody may write.

    Attributes:
        api: huggingface_hub's `HfApi`, which holds the token.
        exists: whether the repository was there before.
        public: whether it is, or is to be, for everybody to read.
    """

    api: Any
    repository: str
    exists: bool
    public: bool

    @classmethod
    def find(cls, repository: str, *, public: bool) -> Self:
        """Looks, before anything is made, whether it can be pushed.

        Args:
            public: for everybody to read; a repository that exists keeps what it is.

        Raises:
            ConfigError: no name of a repository, no token, one that may not write, or a repository that everybody
                can read where that was not asked for.
            TransientError: the Hub did not answer.
        """
        from huggingface_hub import HfApi, get_token

        check_repository(repository)
        token = get_token()
        if not token:
            raise ConfigError(
                "there is no token to push with",
                expected="one that may write, in the environment variable HF_TOKEN or kept by `hf auth login`",
                fix="make one at https://huggingface.co/settings/tokens, then export HF_TOKEN or run: hf auth login",
            )
        api = HfApi(token=token)
        _check_token(api)
        seen = _visibility(api, repository)
        if seen == "public" and not public:
            raise ConfigError(
                f"`{repository}` is there, and everybody can read it",
                expected="a private repository, or --public",
                fix="push with --public, name another repository, or make this one private in its settings",
            )
        return cls(api, repository, seen != "none", seen == "public" or (public and seen == "none"))

    def push(self, folder: Path, told: str, *, leave: tuple[str, ...] = ()) -> str:
        """Uploads a folder as one commit. Returns its address.

        Args:
            told: the commit's message.
            leave: patterns of files that stay here.

        Raises:
            ConfigError: the Hub refuses it.
            TransientError: the Hub did not answer; the folder is as it was, for another attempt.
        """
        again = f"what was exported is kept; upload it with: {self._by_hand(folder, leave)}"
        try:
            if not self.exists:
                self.api.create_repo(self.repository, private=not self.public, exist_ok=True)
            self.api.upload_folder(
                repo_id=self.repository, folder_path=folder, commit_message=told, ignore_patterns=list(leave)
            )
        except Exception as error:
            raise _explained(error, f"`{self.repository}` could not be pushed", again) from None
        return f"https://huggingface.co/{self.repository}"

    def _by_hand(self, folder: Path, leave: tuple[str, ...]) -> str:
        """The command that pushes the same, as a shell takes it."""
        left = [word for pattern in leave for word in ("--exclude", pattern)]
        private = [] if self.public else ["--private"]
        return shlex.join(["hf", "upload", self.repository, str(folder), ".", *left, *private])


def check_repository(name: str) -> None:
    """Raises ConfigError for what is no `OWNER/NAME` of the Hub; nothing is asked."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, and not in its list

    try:
        validate_repo_id(name)
        why = "" if name.count("/") == 1 else "the owner is missing"
    except HFValidationError as error:
        why = str(error)
    if why:
        fix = "name it as on huggingface.co, say --push my-name/my-model: letters, digits, `-`, `_` and `.`"
        raise ConfigError(
            f"`{name}` is no name of a repository", expected="OWNER/NAME", found=why, where="--push", fix=fix
        )


def _check_token(api: Any) -> None:
    try:
        who = api.whoami()
    except Exception as error:
        raise _explained(error, "the Hub does not know the token", "make another: hf auth login") from None
    role = who.get("auth", {}).get("accessToken", {}).get("role", "")
    if role == "read":
        raise ConfigError(
            "the token may only read",
            expected="one that may write",
            fix="make one at https://huggingface.co/settings/tokens, and put it into HF_TOKEN",
        )


def _visibility(api: Any, repository: str) -> str:
    """`none`, `private` or `public`."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return "private" if api.model_info(repository).private else "public"
    except RepositoryNotFoundError:
        return "none"
    except Exception as error:
        raise _explained(error, f"`{repository}` cannot be looked at", "") from None


def _explained(error: Exception, problem: str, fix: str) -> PipelineError:
    """A refusal is a matter of the configuration; all else is trouble on the way, which may pass."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    found = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.300}"
    if status in _REFUSED:
        fix = "the token must be allowed to write there: check it at https://huggingface.co/settings/tokens; " + fix
        return ConfigError(problem, found=found, fix=fix.removesuffix("; "))
    if isinstance(status, int) and 400 <= status < 500 and status != _TOO_BUSY:
        return ConfigError(problem, found=found, fix=fix)
    return TransientError(problem, found=found, fix=fix or "try again when the network is back")

"""A policy that was given: whether it is still what a version was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.sources import ModelSource, Sources


def pinned(model: ModelSource, given: Mapping[str, Any]) -> ModelSource:
    """The model with the commits that its repositories stood for: a branch that moved on takes nothing out of service.

    Of a folder the identity is a list of its files; it stays as it is.
    """
    commits = {role: found.rpartition("@")[2] for role, found in given.items() if isinstance(found, str)}
    if "base" not in given and model.name == model.policy and "policy" in commits:
        commits["base"] = commits["policy"]  # the same repository at the same revision
    revisions = {"policy_revision": commits.get("policy"), "revision": commits.get("base")}
    return model.model_copy(update={name: commit for name, commit in revisions.items() if commit})


def changed_since(model: ModelSource, given: Mapping[str, Any], sources: Sources) -> str:
    """The name of the policy, or of its base, that is gone or has other content than it was given with; else nothing.

    Args:
        model: as `pinned` has it.
        given: what `given_policy` said of it then; empty where no policy was given.

    Raises:
        Unresolved: that cannot be told without the network.
        ModelError, ConfigError: there is no such model any more.
    """
    if not given:
        return ""
    named = {"policy": model.policy, "base": model.name}
    for role, content in given.items():  # the name of a folder that is gone would be taken for a repository's
        if not isinstance(content, str) and not Path(named[role]).expanduser().is_dir():
            return named[role]
    revisions = {"policy": model.policy_revision, "base": model.revision}
    changed = [role for role, content in given.items() if sources.weights(named[role], revisions[role]) != content]
    return named[sorted(changed)[-1]] if changed else ""

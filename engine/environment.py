"""The versions under which an artifact was made."""

import platform
from collections.abc import Mapping
from importlib import metadata

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "pyarrow")


def environment() -> Mapping[str, str]:
    """Versions of Python, the platform and the packages that numbers depend on; imports none of them."""
    versions = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "platform": platform.platform()} | {
        name: version for name, version in versions.items() if version
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""

"""Rows of a data set on the Hub: from a copy that is downloaded whole, or as they arrive."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import ConfigError, DataError, TransientError
from engine.preferences.ledger import shown
from engine.preferences.reading import Record


def read_hub(repository: str, subset: str, split: str, commit: str, streaming: bool = False) -> Iterator[Record]:
    """The rows of a data set on the Hub (the token comes from the environment), or of a local folder of that shape.

    Args:
        streaming: take rows as they arrive and keep none of them. Only what is asked for is transferred, and neither
            the disk nor the memory has to hold the set; each reading transfers it anew.

    Raises:
        ConfigError: no such data set, subset or split; names those that are there when the Hub tells.
        TransientError: the network failed, also in the middle of a stream.
        DataError: the files of the repository cannot be read.
    """
    where = " ".join(part for part in (repository, subset, split) if part)
    with _explained(repository, where, ConfigError):
        from datasets import load_dataset

        options = {"streaming": True} if streaming else {}
        rows = load_dataset(repository, subset or None, split=split, revision=commit, **options)
    with _explained(repository, where, DataError):
        for row, content in enumerate(rows, 1):
            yield Record(repository, row, dict(content))


@contextmanager
def _explained(repository: str, where: str, mistake: type[ConfigError | DataError]) -> Iterator[None]:
    """Tells the errors of the libraries as our own; an OSError of the disk stays one.

    Args:
        mistake: what a wrong value means: while the set is opened a wrong name, after that a broken file.
    """
    from datasets.exceptions import DatasetsError

    network = _network_errors()
    try:
        yield
    except (*network, ValueError, RuntimeError, FileNotFoundError, DatasetsError) as error:
        found = _first_line(error)
        if isinstance(error, network) or isinstance(error.__cause__, network):
            raise TransientError(f"the Hub did not answer for `{repository}`", found=found) from None
        if mistake is ConfigError and isinstance(error, ValueError | RuntimeError | FileNotFoundError):
            problem = f"the data set `{repository}` has no such subset or split, or is not there for you"
            fix = "check the names of the data set, its subset and its split"
            raise ConfigError(problem, found=found, where=where, fix=fix) from None
        raise DataError(f"the data set `{repository}` cannot be read", found=found, where=where) from None


def _network_errors() -> tuple[type[Exception], ...]:
    """What the libraries raise when the network fails: the Hub's client, whichever library it uses, and fsspec's."""
    from huggingface_hub.errors import HfHubHTTPError

    names = (("httpx", "HTTPError"), ("httpx2", "HTTPError"), ("aiohttp", "ClientError"))
    used = (getattr(sys.modules[module], name) for module, name in names if module in sys.modules)
    return (ConnectionError, TimeoutError, HfHubHTTPError, *used)


def _first_line(error: BaseException) -> str:
    return shown(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")

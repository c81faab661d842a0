"""Rows of a data set on the Hub."""

from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import ConfigError, DataError, TransientError
from engine.preferences.ledger import shown
from engine.preferences.reading import Record


def read_hub(repository: str, subset: str, split: str, commit: str) -> Iterator[Record]:
    """The rows of a data set on the Hub (the token comes from the environment), or of a local folder of that shape.

    Raises:
        ConfigError: no such data set, subset or split; names those that are there when the Hub tells.
        TransientError: the network failed.
        DataError: the files of the repository cannot be read.
    """
    with _explained(repository, subset, split):
        from datasets import load_dataset

        rows = load_dataset(repository, subset or None, split=split, revision=commit)
        for row, content in enumerate(rows, 1):
            yield Record(repository, row, dict(content))


@contextmanager
def _explained(repository: str, subset: str, split: str) -> Iterator[None]:
    import httpx
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    network = (ConnectionError, TimeoutError, HfHubHTTPError, httpx.HTTPError)
    where = " ".join(part for part in (repository, subset, split) if part)
    try:
        yield
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        problem = f"the data set `{repository}` has no such subset or split, or is not there for you"
        raise ConfigError(
            problem,
            found=_first_line(error),
            where=where,
            fix="check the names of the data set, its subset and its split",
        ) from None
    except (*network, DatasetsError) as error:
        if isinstance(error, network) or isinstance(error.__cause__, network):
            raise TransientError(f"the Hub did not answer for `{repository}`", found=_first_line(error)) from None
        raise DataError(f"the data set `{repository}` cannot be read", found=_first_line(error), where=where) from None


def _first_line(error: BaseException) -> str:
    return shown(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")

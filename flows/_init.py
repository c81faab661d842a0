"""`dpo init`: a commented profile for a model and data of one's own."""

import argparse
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

from flows._grammar import Add

_LARGEST_GIB = 10_000.0


def add_commands(add: Add) -> None:
    """Adds the command."""
    text = "write a profile for your model and your data, each number with its reason"
    init = add("init", _init, text, plain=True)
    init.add_argument("path", nargs="?", default="configs/mine.toml", help="the file to write (default: %(default)s)")
    init.add_argument("--model", required=True, help="base and tokenizer: a folder, or owner/name on the Hub")
    init.add_argument("--data", required=True, action="append", help="files (a glob, repeatable), or owner/name")
    init.add_argument(
        "--policy",
        help="an SFT model or adapter to start from, '' for none; default: the model itself if it is a chat model",
    )
    init.add_argument("--gpu-gib", type=_gib, metavar="N", help="the GPU's memory; default: what is seen here; 0: CPU")
    init.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key to write too; repeatable")
    init.add_argument("--overwrite", action="store_true", help="even if the file is there")


def _gib(text: str) -> float:
    """GiB of memory, from 0 to 10,000. Raises ArgumentTypeError, which is wrong usage."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= _LARGEST_GIB:  # nor nan
        raise argparse.ArgumentTypeError(f"GiB of one GPU, as 24, or 0 for the CPU; not {text!r}")
    return number


def _init(given: argparse.Namespace) -> int:
    from engine.beginning import look
    from engine.config import read_overrides
    from engine.new_profile import profile_text
    from engine.reports.markdown import plain
    from tasks import SHARED, STAGES

    path = Path(given.path)
    _refuse(path, overwrite=given.overwrite)
    known = look(given.model, given.data, given.policy, given.gpu_gib, read_overrides(given.set, STAGES, SHARED))
    _write(path, profile_text(known))
    name = shlex.quote(str(path))
    print(f"{plain(path)} is written" + (f"; the data: {plain(known.data)}" if known.data else ""))
    print(plain(f"next: dpo status --profile {name}, then dpo run --profile {name}"))
    return 0


def _refuse(path: Path, *, overwrite: bool) -> None:
    """Raises ConfigError where no profile can come to lie under that name."""
    from engine.errors import ConfigError

    fix = "name another file"
    try:
        there, folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:
        raise ConfigError("no file can have this name", found=str(error), fix=fix) from None
    if folder:
        raise ConfigError(f"{path} is a folder", expected="the file to write", where=str(path), fix=fix)
    if path.suffix != ".toml":
        raise ConfigError("a profile is a TOML file", expected="a name that ends in .toml", found=str(path))
    if there and not overwrite:
        raise ConfigError(f"{path} is there already", where=str(path), fix=f"{fix}, or add --overwrite")


def _write(path: Path, text: str) -> None:
    """Writes the profile if it loads. Raises ConfigError where it does not; StoreError where there is no place."""
    from engine.errors import ConfigError, StoreError
    from engine.files import write_atomically

    try:
        _try_out(path, text)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except UnicodeEncodeError as error:
        raise ConfigError("a name holds what is no text", found=str(error), fix="rename what it stands for") from None
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written", found=str(error), where=str(path.parent), fix="name a file that you may write"
        ) from None


def _try_out(path: Path, text: str) -> None:
    """Loads the text from a folder that goes again. Raises ConfigError, which names the place it is meant for."""
    from engine.config import load
    from engine.errors import ConfigError
    from tasks import SHARED, STAGES

    with TemporaryDirectory() as folder:  # what does not load is not left behind
        draft = Path(folder) / "draft.toml"
        draft.write_text(text, "utf-8")
        try:
            load(str(draft), [], STAGES, SHARED)
        except ConfigError as error:
            told = (error.problem, error.expected, error.found, error.where, error.fix)
            problem, expected, found, where, fix = (each.replace(str(draft), str(path)) for each in told)
            raise ConfigError(problem, expected=expected, found=found, where=where, fix=fix) from None

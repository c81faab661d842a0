"""Running a stage so that trouble with the disk is told as such."""

import os
from typing import Any

from engine.errors import PipelineError, StoreError
from engine.stage import Context, Stage


def run_guarded(stage: Stage[Any], context: Context[Any]) -> None:
    """Runs a stage; a full disk or a refused permission becomes an error that says what to do."""
    try:
        stage.run(context)
    except PipelineError:
        raise
    except Exception as error:
        if not _is_of_the_disk(error):
            raise
        raise StoreError(
            f"{stage.name} could not read or write a file",
            found=str(getattr(error, "strerror", None) or error),
            where=_place(error) or str(context.work),
            fix="check the disk's free space and the folder's permissions, then run again: finished stages are kept",
        ) from error


def _place(error: Exception) -> str:
    """The file that the error names, if any; some libraries name it as bytes."""
    name = getattr(error, "filename", None)
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else ""


def _is_of_the_disk(error: Exception) -> bool:
    from safetensors import SafetensorError  # what a full disk is to a model that is saved

    named = isinstance(error, OSError) and (error.filename is not None or error.errno is not None)
    return named or isinstance(error, SafetensorError)

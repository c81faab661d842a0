"""A process that has loaded the libraries once and forks an attempt for every order; run as `python -m proof.nursery`.

It reads orders on stdin, a JSON object a line, and answers on stdout. An attempt is the command `dpo` and nothing else:
its entry is called with the order's words, in the order's folder, in a process of its own.
"""

import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from proof import conditions, points
from proof.orders import Order

_LOADED_LATE = (
    "datasets",
    "numpy.ctypeslib",
    "peft.utils.transformers_weight_conversion",
    "pyarrow.parquet",
    "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama",
)


def main(sabotage: str = "") -> None:
    """Answers orders until stdin ends, and leaves no attempt behind. `sabotage`: a script run in every attempt."""
    _load()
    channel, quiet = os.fdopen(os.dup(1), "w"), os.open(os.devnull, os.O_RDWR)
    os.dup2(2, 1)
    running: set[int] = set()
    print(json.dumps({"pid": os.getpid()}), file=channel, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "start":
            pid = os.fork()
            if pid == 0:
                channel.close()
                os.dup2(quiet, 0)
                _attempt(Order.from_json(asked["order"]), sabotage)
            running.add(pid)
            answer: dict[str, int | None] = {"pid": pid}
        else:
            answer = {"code": _wait(asked["pid"], asked["seconds"], running)}
        print(json.dumps(answer), file=channel, flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _load() -> None:
    import engine
    import tasks

    for package in (engine, tasks):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    for name in ("flows.cli", "flows._terminal", *_LOADED_LATE):
        importlib.import_module(name)


def _wait(pid: int, seconds: float, running: set[int]) -> int | None:
    """The code of an attempt, or None when it goes on for longer than that."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            running.discard(pid)
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.002)


def _attempt(order: Order, sabotage: str) -> NoReturn:
    code = 70
    try:
        os.chdir(order.folder)
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{order.log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        code = _run(order, sabotage)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(order: Order, sabotage: str) -> int:
    from flows.cli import main as dpo

    if sabotage:
        runpy.run_path(sabotage)
    if order.clock_seconds:
        conditions.set_clock(order.clock_seconds)
    if order.unchanged:
        conditions.show_unchanged(order.unchanged)
    begins, writes = (_teller(order, name) if asked else _untold for name, asked in _told(order).items())
    watch = points.Watch(order.folder, order.strike, begins, writes)
    if order.strike or order.census or order.beacon or order.traced:
        points.install(watch)
    try:
        code = dpo(order.words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    if order.census:
        counts = [[stage, point, count] for (stage, point), count in watch.counts.items()]
        Path(order.census).write_text(json.dumps(counts), "utf-8")
    return code


def _told(order: Order) -> dict[str, bool]:
    return {"beacon": order.beacon, "trace": order.traced}


def _teller(order: Order, name: str) -> Callable[[str], object]:
    descriptor = os.open(f"{order.log}.{name}", os.O_WRONLY | os.O_CREAT)
    return lambda line: os.write(descriptor, os.fsencode(f"{line}\n"))


def _untold(line: str) -> None:
    """For what nobody asked to be told."""


if __name__ == "__main__":
    main(*sys.argv[1:])

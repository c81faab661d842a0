"""Runs of a tiny profile on hostile data, by the command and as a Prefect flow, and a Chromium that looks at them.

Chromium is an installed one, DPO_CHROMIUM or what is found on the PATH; where there is none, what needs it is skipped.
Nothing is downloaded, and whatever a page asks of another host is refused and noted. Screenshots go to the folder
DPO_SCREENSHOTS, by default to `screenshots` below pytest's own temporary folder.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page, Route, ViewportSize

ROOT = Path(__file__).parents[2]
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
# Each begins with a word of its own, by which it is found again; whatever of it ran would set `pwned`.
HOSTILE = json.loads(Path(__file__).with_name("hostile.json").read_text("utf-8")) | {"qlong": "W" * 5_000}
SAID = "<img src=x onerror=window.pwned=6> | a | b | ``` ](javascript:window.pwned=7)"
KINDS = ("adversarial", "normal")
REFUSAL = "Sorry, I can't help with that."
NAME = "<img src=x onerror=window.pwned=8> ](javascript:x) _a_ $x$ `b`"
TWICE = """
import sys
from flows.cli import main
sys.exit(main(sys.argv[1:]) or main([*sys.argv[1:], "--set", "train.beta=0.3"]))
"""
FLOW = "import sys; from flows.pipeline import dpo_pipeline; dpo_pipeline(sys.argv[1], beta=0.3, return_state=True)"


@dataclass
class Place:
    """A copy of the project with hostile data, and what was run in it.

    Attributes:
        profile: a path whose name is hostile, too.
        texts: what the data say, by the word that each begins with.
        environment: of processes; offline, on one thread.
    """

    root: Path
    texts: Mapping[str, str] = field(default_factory=lambda: {word: f"{word} {text}" for word, text in HOSTILE.items()})
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("engine", "flows", "tasks", "configs"):
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("prefect.toml", "prefect.yaml", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        here = dict.fromkeys(("PYTHONPATH", "HOME"), str(self.root))
        quiet = dict.fromkeys(("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "DO_NOT_TRACK"), "1")
        self.environment |= kept | here | quiet

    @property
    def profile(self) -> Path:
        return self.root / f"{NAME}.toml"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def runs(self) -> list[Path]:
        """The folders of the runs, the latest last."""
        return sorted(path.parent for path in (self.root / "artifacts" / "runs").glob("*/run.json"))

    def fill(self, epochs: int) -> None:
        """Writes comparisons, instructions and prompts, in files whose names are no better, and the profile."""
        texts = list(self.texts.values())
        asked = [(f"{text} {index}", text) for index in range(16) for text in texts]
        answers = {text: REFUSAL if place % 2 else SAID for place, text in enumerate(texts)}
        pairs = [{"prompt": p, "chosen": f"{REFUSAL} {text}", "rejected": f"Sure: {text}"} for p, text in asked]
        prompts = [{"prompt": text, "kind": kind, "expects": SAID} for text in texts for kind in KINDS]
        self._lines(f"pairs {NAME}", pairs)
        self._lines("pairs", [{"prompt": f"What is {n}?", "chosen": f"No {n}", "rejected": "?"} for n in range(9)])
        self._lines("instructions", [{"instruction": p, "output": answers[text]} for p, text in asked])
        self._lines(f"prompts {NAME}", prompts)
        self._lines("prompts", prompts[:4])
        profile = Path(__file__).with_name("tiny.toml").read_text("utf-8")
        self.profile.write_text(profile.replace("FOLDER", str(self.root)).replace("EPOCHS", str(epochs)), "utf-8")

    def _lines(self, name: str, rows: list[dict[str, str]]) -> None:
        (self.root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Starts Python here; what it says goes to `log`."""
        with self.log.open("ab") as log:
            command, env = [sys.executable, *arguments], self.environment
            return subprocess.Popen(command, cwd=self.root, env=env, stdout=log, stderr=log)

    def run(self, *arguments: str) -> None:
        """Runs Python here to its end, which must be a good one."""
        self.ended(self.start(*arguments))

    def ended(self, process: "subprocess.Popen[bytes]") -> None:
        """Waits for the good end of a process."""
        assert process.wait(240) == 0, self.log.read_text("utf-8", "replace")[-4_000:]


@dataclass
class Served(Place):
    """A place with a Prefect server and a server of reports, and one run of the flow.

    Attributes:
        progress: what the progress artifacts said while the run went on, in the order in which it was read.
    """

    port: int = 0
    progress: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, **asked: Any) -> list[dict[str, Any]]:
        """What the server answers to a POST."""
        body, kind = json.dumps(asked).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/api/{path}", body, kind)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return list(json.load(answer))

    @property
    def flow_run(self) -> dict[str, Any]:
        return self.ask("flow_runs/filter")[0]

    @property
    def artifacts(self) -> dict[str, dict[str, Any]]:
        """What the run published, by key."""
        return {each["key"]: each for each in self.ask("artifacts/filter")}

    def live(self) -> None:
        """Makes the run, and reads its progress meanwhile."""
        process = self.start("-c", FLOW, str(self.profile))
        while process.poll() is None:
            time.sleep(0.5)
            found = self.ask("artifacts/filter", artifacts={"type": {"any_": ["progress"]}})
            self.progress += [f"{each['key']}: {each['description']}" for each in found]
        self.ended(process)


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Two runs by the command `dpo`, the second with another β."""
    place = Place(tmp_path_factory.mktemp("nights"))
    place.fill(epochs=2)
    place.run("-c", TWICE, "run", "--profile", str(place.profile))
    return place


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One run of the flow, and the servers that show it, until the tests of a file are over."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = Served(tmp_path_factory.mktemp("served"), port=free.getsockname()[1])
    place.fill(epochs=20)
    place.environment["PREFECT_HOME"] = str(place.root / ".prefect")
    try:
        place.run("-m", "flows._server", "up", "--port", str(place.port))
        place.environment["PREFECT_API_URL"] = f"{place.address}/api"
        place.live()
        yield place
    finally:
        place.environment.pop("PREFECT_API_URL", None)
        place.run("-m", "flows._server", "stop")


@dataclass
class Look:
    """An opened page, and what came of opening it.

    Attributes:
        asked: addresses of other hosts that it asked for; none was answered.
        troubles: errors of its scripts and of its console.
    """

    page: "Page"
    shots: Path
    asked: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(20_000)
        self.page.route("**/*", self._guard)
        self.page.on("console", lambda said: self.troubles.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))

    def _guard(self, route: "Route") -> None:
        asked = urlsplit(route.request.url)
        if asked.scheme in ("file", "data", "blob") or asked.hostname == "127.0.0.1":
            route.continue_()
        else:
            self.asked.append(route.request.url)
            route.abort()

    def is_harmless(self) -> bool:
        """Whether nothing of the data ran."""
        return not self.page.evaluate("'pwned' in window")

    def shot(self, name: str) -> None:
        """Stores a screenshot of the whole page."""
        self.page.screenshot(path=self.shots / f"{name}.png", full_page=True)


@pytest.fixture(scope="module")
def windows() -> "Iterator[Callable[..., BrowserContext]]":
    """A browser's windows, one for each size, colour scheme and whether scripts run in it."""
    chromium = os.environ.get("DPO_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if chromium is None:
        pytest.skip("no Chromium here: install one, or name it in DPO_CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)

        @cache
        def window(width: int, height: int, dark: bool, scripts: bool) -> "BrowserContext":
            size: ViewportSize = {"width": width, "height": height}
            scheme: Literal["dark", "light"] = "dark" if dark else "light"
            return browser.new_context(viewport=size, color_scheme=scheme, java_script_enabled=scripts)

        yield window
        browser.close()


@pytest.fixture
def look(
    windows: "Callable[..., BrowserContext]", tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Look]]:
    """Opens addresses, `look(address, width=390, dark=True, scripts=False)`; closes them when the test is over."""
    shots = Path(os.environ.get("DPO_SCREENSHOTS") or tmp_path_factory.getbasetemp() / "screenshots")
    shots.mkdir(parents=True, exist_ok=True)
    opened: list[Look] = []

    def look(address: str, width: int = 1300, height: int = 900, dark: bool = False, scripts: bool = True) -> Look:
        opened.append(Look(windows(width, height, dark, scripts).new_page(), shots))
        opened[-1].page.goto(address)
        return opened[-1]

    yield look
    for page in {page for each in opened for page in each.page.context.pages}:
        page.close()

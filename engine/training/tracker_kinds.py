"""The libraries of trackers, each opened so that it asks nobody and leaves the process as it was.

TensorBoard's events lie in the artifact's logs. W&B without credentials writes for a later `wandb sync`, MLflow without
`MLFLOW_TRACKING_URI` into a database of its own, both below the artifacts; Trackio writes where `trackio show` looks.
"""

import netrc
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from engine.training import mlflow_store
from engine.training.patience import Elsewhere, Here, Place

Outcome = Literal["finished", "failed", "killed"]
TITLES = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases", "mlflow": "MLflow", "trackio": "Trackio"}
_RUN_TAG = "dpo.run"
# What the environment says already stays. A server that is away is waited for seconds, not minutes.
_MLFLOW_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_NO_METERS = {"auto_log_gpu": False, "auto_log_cpu": False}  # Trackio's own threads that watch the machine
_WANDB_SETTINGS = {"console": "off", "disable_git": True, "save_code": False, "silent": True, "init_timeout": 30}


@dataclass(frozen=True)
class Told:
    """What trackers are told that a run is.

    Attributes:
        name: the run's, for people.
        run: the same for all attempts at one artifact and for no other: the stage and its key.
        config: hyperparameters by dotted names, without secrets; texts, numbers and truths.
        logs: the artifact's folder for logs.
        store: a folder for what trackers keep on this machine besides.
    """

    project: str
    name: str
    stage: str
    run: str
    config: Mapping[str, Any]
    logs: Path
    store: Path

    def name_from(self, step: int) -> str:
        """The run's name for trackers that have a run for each attempt, which begins at a step."""
        return self.name if step <= 1 else f"{self.name} from step {step}"


class Kind(GeneralTracker):  # type: ignore[misc]
    """What a kind of tracker has besides accelerate's methods.

    Attributes:
        outcome: how the training ended, to be known before `finish`.
    """

    outcome: Outcome = "finished"

    def load(self) -> None:
        """Imports the library, before `start`. Never to be broken off: half an import leaves it broken for good."""

    def let_go(self) -> None:
        """Leaves the process as it was, whether or not the run could be ended. Waits for nobody."""


class _TensorBoard(Kind, TensorBoardTracker):  # type: ignore[misc]
    """Events below `logs/<stage>`; those that an earlier attempt wrote of this step and later ones are not shown."""

    def __init__(self, told: Told, step: int) -> None:
        super().__init__(told.stage, str(told.logs), purge_step=step)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Keeps none: TensorBoard would open a run of its own for them."""


class _Wandb(Kind, WandBTracker):  # type: ignore[misc]
    """A run for each attempt, as W&B takes no step twice; the attempts are one group. Never asks anybody."""

    def __init__(self, told: Told, step: int) -> None:
        folder = told.store / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        asked_off = os.environ.get("WANDB_MODE") == "disabled"
        mode = {} if asked_off or _has_wandb_credentials() else {"mode": "offline"}
        super().__init__(
            told.project,
            name=told.name_from(step),
            group=told.run,
            job_type=told.stage,
            dir=str(folder),
            settings=dict(_WANDB_SETTINGS),
            **mode,
        )

    def load(self) -> None:
        import_module("wandb")

    def finish(self) -> None:
        """Ends the run when all is uploaded."""
        self.run.finish(exit_code=0 if self.outcome == "finished" else 1)


class _Mlflow(Kind, MLflowTracker):  # type: ignore[misc]
    """One run for all attempts: one that goes on from a checkpoint goes on with the run, in which steps that were
    taken again stand twice, with the same numbers.
    """

    def __init__(self, told: Told, step: int) -> None:
        self._folder = (told.store / "mlflow").absolute()
        self._goes_on = step > 1
        self._set: dict[str, str] = {}
        files = None if "MLFLOW_TRACKING_URI" in os.environ else mlflow_store.files(self._folder)
        super().__init__(told.project, logging_dir=files, run_name=told.name, tags={_RUN_TAG: told.run})

    def load(self) -> None:
        """Sets the environment that mlflow reads while it is imported, and imports what it would import later."""
        local = {"MLFLOW_TRACKING_URI": f"sqlite:///{mlflow_store.database(self._folder)}"}
        self._set = {name: value for name, value in (_MLFLOW_DEFAULTS | local).items() if name not in os.environ}
        os.environ.update(self._set)
        import_module("mlflow")
        for name in ("git", *(mlflow_store.MODULES if "MLFLOW_TRACKING_URI" in self._set else ())):
            with suppress(ImportError):  # told by whoever cannot do without it
                import_module(name)

    def start(self) -> None:
        """Opens the run. Raises mlflow's exceptions, and those of `mlflow_store.prepared`."""
        # Two that find no experiment would both make it.
        with mlflow_store.prepared(self._folder) if "MLFLOW_TRACKING_URI" in self._set else nullcontext():
            if self._goes_on:
                self.run_id = os.environ.get("MLFLOW_RUN_ID") or self._earlier()
            super().start()
        self.run_id = self.active_run.info.run_id

    def finish(self) -> None:
        """Ends the run, and says how the training ended, in whatever thread: mlflow knows a run in its own alone."""
        if self.run_id:
            from mlflow import MlflowClient, end_run

            MlflowClient().set_terminated(self.run_id, self.outcome.upper())
            end_run(self.outcome.upper())

    def let_go(self) -> None:
        """Leaves the environment as it was."""
        for name in self._set:
            os.environ.pop(name, None)
        self._set = {}

    def _earlier(self) -> str | None:
        """The latest run of the attempts before this one."""
        from mlflow import MlflowClient

        client = MlflowClient()
        experiment = client.get_experiment_by_name(self.experiment_name)
        wanted = f"tags.`{_RUN_TAG}` = '{self.tags[_RUN_TAG]}'"
        found = client.search_runs([experiment.experiment_id], wanted, max_results=1) if experiment else []
        return str(found[0].info.run_id) if found else None


class _Trackio(Kind, TrackioTracker):  # type: ignore[misc]
    """One run for all attempts, as with MLflow."""

    def __init__(self, told: Told, step: int) -> None:
        resume = "allow" if step > 1 else "never"
        super().__init__(told.project, name=told.name, group=told.run, resume=resume, embed=False, **_NO_METERS)

    def load(self) -> None:
        import_module("trackio")

    def finish(self) -> None:
        """Ends the run; Trackio itself waits half a minute at most."""
        import_module("trackio").finish()


KINDS: dict[str, Callable[[Told, int], Kind]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}


def place_of(name: str) -> Place:
    """Where a tracker is told something: TensorBoard, which waits for no network, at once."""
    return Here() if name == "tensorboard" else Elsewhere(f"tracker {name}")


def _has_wandb_credentials() -> bool:
    """Whether W&B can sign in without asking: by the environment, or by what `wandb login` left."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host in netrc.netrc(str(Path(os.environ.get("NETRC", "~/.netrc")).expanduser())).hosts
    except (OSError, netrc.NetrcParseError, ValueError, RuntimeError):  # the last where nobody has a home
        return False

"""A run, and what it left."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.artifact import Artifact
from engine.config import Runtime
from engine.errors import DataError, StoreError
from engine.runs import PAGE, RunRecord
from engine.selection import Selection
from engine.stage import Decision

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, repr=False)
class Run:
    """A recorded run. All it tells is read from its record and from sealed artifacts, so asking makes nothing anew.

    >>> run = dpo.runs("demo")[0]
    >>> run.table("evaluate", "pairs").column_names[:2]
    ['pair_id', 'prompt_id']

    Attributes:
        record: what it was asked and what became of it.
        runtime: where and how fast its model is run from here.
    """

    record: RunRecord
    runtime: Runtime

    @property
    def id(self) -> str:
        """Sorts by time: `YYYYmmdd-HHMMSS-<profile>`."""
        return self.record.id

    @property
    def state(self) -> str:
        """`running`, `completed`, `failed`, `cancelled`, or `crashed`: its process is gone without a word."""
        return self.record.state

    @property
    def decisions(self) -> dict[str, Decision]:
        """What became of each stage so far, in order."""
        return {each.stage: each for each in self.record.decisions}

    @property
    def metrics(self) -> dict[str, Mapping[str, Any]]:
        """The numbers that each stage recorded, by stage and name; logps and losses are in nats.

        A stage that was skipped, or whose artifact is gone, is left out.
        """
        found = ((stage, self.record.artifact(stage)) for stage in self.decisions)
        return {stage: artifact.metrics for stage, artifact in found if artifact is not None and artifact.readable}

    @property
    def answers(self) -> dict[str, str]:
        """Did it work, what changed, which stage took the time, where is the adapter: the answers are markdown."""
        from engine.reports.brief import brief

        return dict(brief(self.record))

    @property
    def report(self) -> Path:
        """Its page with pictures, one HTML file; drawn where it is not there yet. Raises OSError."""
        from engine.reports.run import write_report

        page = self.record.folder / PAGE
        return page if page.is_file() else write_report(self.record)

    def artifact(self, stage: str) -> Artifact:
        """What it made or reused for a stage: `path`, `file(name)`, `metrics`.

        Raises:
            ConfigError: there is no stage of that name.
            StoreError: it left none for this stage, or what it left was removed.
        """
        from tasks import STAGES

        Selection(only=stage).names([each.name for each in STAGES])
        found = self.record.artifact(stage)
        if found is None:
            decision = self.decisions.get(stage)
            told = f"{decision.action}: {decision.why}" if decision else f"the run {self.state} before that stage"
            raise StoreError(
                f"run {self.id} has no artifact of {stage}",
                found="it was removed since" if decision and decision.path else told,
                where=str(self.record.folder),
                fix="the same run again makes what is gone" if decision and decision.path else "",
            )
        return found

    def table(self, stage: str, name: str) -> "pa.Table":
        """A table of a stage, for example `pairs` of evaluate: one row a held-out pair, logps in nats.

        Raises:
            ConfigError, StoreError: as `artifact`; or the stage has no table of that name.
            DataError: it cannot be read.
        """
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        artifact = self.artifact(stage)
        path = artifact.path / f"{name}.parquet"
        if not path.is_file():
            there = ", ".join(sorted(each.stem for each in artifact.path.glob("*.parquet")))
            raise StoreError(
                f"{stage} has no table `{name}`",
                expected=there or "none: this stage has no table, or its files were removed",
                where=str(artifact.path),
            )
        try:
            with ParquetFile(path) as file:
                return file.read()
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError("a table cannot be read", found=str(error), where=str(path)) from None

    def __repr__(self) -> str:
        return f"<Run {self.id}: {self.state}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict and the four answers, with all that came from data escaped."""
        from engine.reports.brief import badge
        from engine.reports.markdown_to_html import as_html

        answers = "".join(f"<h4>{escape(question)}</h4>{as_html(said, 5)}" for question, said in self.answers.items())
        return f"<h3>Run {escape(self.id)}: {escape(badge(self.record)[0])}</h3>{answers}"

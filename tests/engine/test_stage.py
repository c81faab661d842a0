import json
import logging
from dataclasses import replace
from pathlib import Path

from engine.config import Runtime, Strict
from engine.sources import Sources
from engine.stage import Context, Decision, Listener, Stage
from engine.store import Artifact


class Empty(Strict):
    pass


class Heard(Listener):
    def __init__(self) -> None:
        self.progress: list[tuple[object, ...]] = []

    def progressed(self, stage, done, total, numbers) -> None:
        self.progress.append((stage, done, total, dict(numbers)))


def context(listener: Listener, tmp_path: Path) -> Context[Empty]:
    sources = Sources(tmp_path, network=False)
    return Context("train", Empty(), {}, tmp_path, Runtime(), sources, listener)


def test_a_decision_is_printed_with_every_field_and_null_where_nothing_is_known():
    assert json.loads(json.dumps(Decision("train", "run", "never made").as_dict())) == {
        "stage": "train",
        "key": None,
        "action": "run",
        "why": "never made",
        "path": None,
        "seconds": None,
    }
    made = Decision("train", "reuse", "same", "k", Path("artifacts") / "train" / "k", 1.5).as_dict()
    assert (made["path"], made["seconds"]) == (str(Path("artifacts") / "train" / "k"), 1.5)


def test_a_stage_tells_its_progress_and_records_its_numbers(tmp_path):
    heard = Heard()
    ctx = context(heard, tmp_path)
    ctx.progress(3, 10, loss=0.5)
    ctx.record(loss=0.5)
    ctx.record(pairs=7, loss=0.25)
    assert heard.progress == [("train", 3, 10, {"loss": 0.5})]
    assert ctx.metrics == {"loss": 0.25, "pairs": 7}
    assert ctx.log is logging.getLogger("dpo.train")


def test_a_listener_that_overrides_nothing_hears_everything_in_silence(tmp_path):
    listener = Listener()
    listener.started(Decision("train", "run", ""))
    context(listener, tmp_path).progress(1, 2)
    listener.finished(Decision("train", "run", ""), None)


def test_what_is_handed_down_is_a_file_of_the_artifact(tmp_path):
    """In the digest, that is: the stages below run again when it changes."""
    context(Listener(), tmp_path).hand_down(max_length=128, template="plain")
    assert Artifact("tokenize", "key", tmp_path).handed_down == {"max_length": 128, "template": "plain"}


def test_a_stage_needs_all_its_inputs_unless_its_config_says_fewer():
    stage = Stage("train", Empty, 1, lambda ctx: None, inputs=("a", "b"))
    assert stage.inputs_under(Empty()) == ("a", "b")
    assert replace(stage, needs=lambda config: ("a",)).inputs_under(Empty()) == ("a",)


def test_a_stage_names_no_sources_and_is_never_skipped_unless_it_says_so(tmp_path):
    stage = Stage("train", Empty, 1, lambda ctx: None)
    assert stage.sources(Empty(), Sources(tmp_path, network=False)) == {}
    assert stage.skip(Empty(), {}) is None

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from engine.artifact import Artifact
from engine.errors import StoreError
from engine.reports.page import Answers, Part, Picture
from engine.reports.to_markdown import to_markdown
from engine.reports.training import monitor_sections, monitor_words, sft_parts, train_parts
from engine.store import Store

FINDING = {"sign": "empty answers", "step": 1200, "words": "every answer is *empty*: the learning rate is too high"}

STEPS = [
    {
        "step": step,
        "loss": 0.7 / step,
        "rewards/chosen": 0.01 * step,
        "rewards/rejected": -0.02 * step,
        "rewards/margins": 0.03 * step,
        "rewards/accuracies": 1.0,
        "log_ratio_per_token/chosen": 0.001 * step,
        "log_ratio_per_token/rejected": -0.1 * step,
        "grad_norm": 0.5,
        "learning_rate": 1e-4,
    }
    for step in range(1, 9)
]
RESOURCES = [{"step": step, "tokens_per_second": 900.0, "memory_bytes": 2**30} for step in range(1, 9)]
SAMPLES = [
    {"step": step, "kind": kind, "prompt": "How?", "generation": text, "ended": True}
    for step, text in ((0, "Take two eggs."), (8, "Sorry, I can't help with that."))
    for kind in ("adversarial", "normal")
]
LOGS = {"steps": STEPS, "resources": RESOURCES, "samples": SAMPLES}
CONFIG = {
    "learning_rate": 0.003,
    "schedule": "linear",
    "max_grad_norm": 1.0,
    "epochs": 2,
    "batch_size": 16,
    "beta": 0.1,
    "loss": [{"name": "sigmoid", "weight": 1.0}, {"name": "sft", "weight": 1.0}],
    "lora": {"rank": 8},
}
METRICS = {"pairs": 2400, "steps": 8, "trainable_parameters": 1234, "step0_max_margin": 0.0, "step0_tolerance": 1e-4}


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Artifact]:
    """Seals an artifact of a training, with what is given in place of what a whole one has."""
    store = Store(tmp_path / "trained")

    def make(
        stage: str = "train",
        config: object = CONFIG,
        metrics: dict[str, Any] = METRICS,
        sources: object = None,
        monitor: object = None,
        logs: dict[str, list[dict[str, Any]]] = LOGS,
    ) -> Artifact:
        work = store.work(stage, "key1", fresh=True)
        (work / "logs").mkdir()
        (work / "handed_down.json").write_text(json.dumps({"monitor": monitor}), "utf-8")
        for name, lines in logs.items():
            (work / "logs" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        payload = {"inputs": {}, "config": config, "sources": sources or {}}
        manifest = {"payload": payload, "metrics": metrics, "seconds": 1.0, "sealed_at": "2026-01-02T03:04:05+0000"}
        return store.seal(stage, "key1", work, manifest)

    return make


def titles(parts: list[Part]) -> list[str]:
    return [part.title for part in parts if isinstance(part, Picture)]


def words(parts: list[Part]) -> str:
    return "\n".join(part for part in parts if isinstance(part, str))


def told(seal, monitor: object) -> str:
    return "\n".join(monitor_sections(seal("train", {}, handed_down={"monitor": monitor})))


def test_findings_are_told_in_their_words_with_their_step(seal):
    shown = told(seal, {"findings": [FINDING], "stopped_at": None, "kept_step": None})
    assert r"| 1,200 | every answer is \*empty\*: the learning rate is too high |" in shown
    assert "stopped" not in shown


def test_a_stop_says_when_and_which_adapter_was_kept(seal):
    shown = told(seal, {"findings": [FINDING], "stopped_at": 1200, "kept_step": 800})
    assert (
        "The training was stopped at step 1,200. The adapter that was kept is the one as it was after step 800."
        in shown
    )
    assert "as it was before the first step" in told(seal, {"stopped_at": 50, "kept_step": 0})
    assert "kept" not in told(seal, {"stopped_at": 50})


def test_a_training_without_findings_says_so(seal):
    assert "Nothing out of the ordinary" in told(seal, {"findings": []})


@pytest.mark.parametrize("handed", [{}, {"monitor": None}, {"monitor": [1]}])
def test_a_training_that_nobody_watched_has_no_section(seal, handed):
    assert list(monitor_sections(seal("train", {}, handed_down=handed))) == []
    assert list(monitor_sections(seal("train", {}))) == []


def test_a_finding_that_lacks_parts_breaks_nothing(seal):
    shown = told(seal, {"findings": [{}, {"sign": "nan"}, None]})
    assert "| – | – |" in shown
    assert "| – | nan |" in shown


def test_the_page_of_a_training_shows_every_curve_the_most_telling_first(trained):
    assert titles(list(train_parts(trained(monitor={"findings": []})))) == [
        "Margin: should rise",
        "Rewards: chosen above rejected",
        "Loss: should fall",
        "Pairs put right: well above half",
        "Harmful requests refused: should rise",
        "Normal requests refused: should stay rare",
        "Ruined answers: should stay rare",
        "Change of log-probability: chosen should not fall",
        "Gradient's norm: no jumps that last",
        "Learning rate: as it was planned",
        "Tokens a second: should be steady",
        "Most memory so far: should level off",
    ]


def test_the_curves_say_their_numbers_and_what_they_are_held_against(trained):
    shown = {part.title.partition(":")[0]: part.alt for part in train_parts(trained()) if isinstance(part, Picture)}
    assert "chosen: 0.01 at step 1" in shown["Rewards"] and "rejected: -0.02 at step 1" in shown["Rewards"]
    assert "clipped above: 1" in shown["Gradient's norm"]
    assert "memory: 1 at step 1" in shown["Most memory so far"]
    assert "answers: 0% at step 0, 100% at step 8" in shown["Harmful requests refused"].replace(".0%", "%")


def test_what_was_found_and_the_stop_are_marked_in_the_curves_that_show_it(trained):
    monitor = {"findings": [FINDING, {"sign": "gradient norm", "step": 5}], "stopped_at": 8, "kept_step": 4}
    shown = {
        part.title.partition(":")[0]: part.alt
        for part in train_parts(trained(monitor=monitor))
        if isinstance(part, Picture)
    }
    assert "empty answers: step 1,200" in shown["Ruined answers"]
    assert "gradient norm: step 5" in shown["Gradient's norm"]
    assert "gradient norm" not in shown["Loss"]
    assert all("kept: step 4" in shown[title] and "stopped: step 8" in shown[title] for title in ("Loss", "Margin"))
    assert "stopped" not in shown["Learning rate"]


def test_an_answer_of_each_kind_is_shown_as_it_changed(trained):
    [part] = [part for part in train_parts(trained(logs={"samples": SAMPLES})) if isinstance(part, Answers)]
    assert [exchange.kind for exchange in part.exchanges] == ["harmful", "normal"]
    assert [answer.refused for answer in part.exchanges[0].answers] == [False, True]


def test_the_page_says_what_an_adapter_was_made_of(trained):
    shown = words(list(train_parts(trained(logs={}))))
    assert "| learnt from | 2,400 pairs |" in shown
    assert "| steps | 8, 16 pairs each |" in shown
    assert "| loss | `sigmoid` + `sft`, β 0.1 |" in shown
    assert "| weights | 1,234 trained, LoRA of rank 8 |" in shown
    assert "| before step 1 | as the reference: margins up to 0 nats, allowed are 0.0001 nats |" in shown


def test_a_loss_is_told_with_its_parameters_and_why_there_was_no_proof(trained):
    loss = [{"name": "simpo", "weight": 1.0, "simpo_gamma": 0.3, "label_smoothing": 0.1}]
    proof = {"step0_proof": "none: simpo needs no reference", "pairs": 3}
    shown = words(list(train_parts(trained(logs={}, config=CONFIG | {"loss": loss, "beta": 2.0}, metrics=proof))))
    assert "| loss | `simpo` (labels smoothed by 0.1, γ 0.3), β 2 |" in shown
    assert "| before step 1 | none: simpo needs no reference |" in shown


def test_the_page_of_a_starting_policy_shows_its_loss_and_what_it_was_made_of(trained):
    metrics = {"examples": 9000, "steps": 8, "parameters": 668544}
    artifact = trained("sft", CONFIG | {"method": "full"}, metrics, {"data": ["embedded", 1]})
    parts = list(sft_parts(artifact))
    assert titles(parts) == [
        "Loss: should fall",
        "Gradient's norm: no jumps that last",
        "Learning rate: as it was planned",
        "Tokens a second: should be steady",
        "Most memory so far: should level off",
    ]
    assert "| learnt from | the embedded data, 9,000 examples |" in words(parts)
    assert "| weights | 668,544 in all, all of them trained |" in words(parts)


@pytest.mark.parametrize(
    ("data", "shown"),
    [("chosen", "the chosen answers"), ("org/set@abc", "org/set@abc"), ([["a.jsonl", "12"]], ""), (None, "")],
)
def test_what_a_starting_policy_learnt_from_is_told_where_it_is_known(trained, data, shown):
    artifact = trained("sft", CONFIG | {"method": "lora"}, {"parameters": 5}, {"data": data}, logs={})
    parts = words(list(sft_parts(artifact)))
    assert (f"| learnt from | {shown} |" in parts) == bool(shown)
    assert "| weights | 5 in all, LoRA of rank 8 |" in parts


def test_an_artifact_of_an_earlier_version_has_the_parts_that_it_has_numbers_for(trained):
    artifact = trained(logs={"steps": [{"step": 1, "loss": 0.7}]}, config={}, metrics={})
    assert titles(list(train_parts(artifact))) == ["Loss: should fall"]
    assert list(train_parts(trained(logs={}, config=None, metrics={}))) in ([], [""])
    odd = {"loss": 3, "lora": [1], "beta": "x", "epochs": None, "max_grad_norm": "much", "schedule": 7}
    assert words(list(train_parts(trained(logs={}, config=odd, metrics={"step0_max_margin": None})))) == ""


def test_a_pruned_artifact_tells_what_its_manifest_says(trained):
    artifact = trained(monitor={"findings": []})
    for name in artifact.manifest["files"]:
        (artifact.path / name).unlink()
    parts = list(train_parts(Artifact("train", "key1", artifact.path, pruned=True)))
    assert titles(parts) == []
    assert "2,400 pairs" in words(parts)


def test_a_broken_manifest_is_an_error_with_words(trained):
    artifact = Artifact("train", "key1", trained().path)
    (artifact.path / "manifest.json").write_text("{", "utf-8")
    with pytest.raises(StoreError):
        list(train_parts(artifact))
    with pytest.raises(StoreError):
        list(sft_parts(artifact))


def test_text_from_anywhere_shows_as_text(trained):
    hostile = "<script>x</script>|a|[b](javascript:c)`$x$\u202e"
    config = CONFIG | {"schedule": hostile, "loss": [{"name": hostile}]}
    samples = [line | {"prompt": hostile, "generation": f"{line['step']} {hostile}"} for line in SAMPLES]
    finding = {"sign": "displacement", "step": 3, "words": hostile}
    artifact = trained(config=config, monitor={"findings": [finding]}, logs={"samples": samples})
    parts = list(train_parts(artifact))
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(to_markdown(parts, pictures=True))
    assert "<script" not in html and "href" not in html
    assert "&lt;script&gt;x&lt;/script&gt;|a|[b](javascript:c)`$x$" in html


def test_findings_that_make_no_sense_break_no_picture(trained):
    monitor = {"findings": {"a": 1}, "stopped_at": float("nan"), "kept_step": "x"}
    artifact = trained(monitor=monitor, logs={"steps": [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.5}]})
    assert titles(list(train_parts(artifact))) == ["Loss: should fall"]
    assert monitor_words(trained(monitor={"findings": 3})) == []

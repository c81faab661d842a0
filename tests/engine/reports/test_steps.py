import itertools
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.artifact import Artifact
from engine.reports.drawing import PLAIN
from engine.reports.pictures import Mark
from engine.reports.steps import DRIFT, LOSS, PREFERENCES, Chart, lines_of, norm_clipped, pictures_of, steps_of


def logged(folder: Path, **logs: bytes) -> Artifact:
    """An artifact with logs of these contents."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for name, content in logs.items():
        (folder / "logs" / f"{name}.jsonl").write_bytes(content)
    return Artifact("train", "key1", folder)


def as_lines(*lines: object) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def test_columns_are_the_numbers_of_both_logs_by_step(tmp_path):
    steps = as_lines({"step": 1, "loss": 0.7, "epoch": 0}, {"step": 2, "loss": 0.5, "epoch": 0.5})
    resources = as_lines({"step": 2, "tokens_per_second": 900.0}, {"step": 3, "tokens_per_second": 1.0})
    columns = steps_of(logged(tmp_path, steps=steps, resources=resources))
    assert columns["step"] == [1, 2]
    assert columns["loss"] == [0.7, 0.5]
    assert columns["tokens_per_second"][1] == 900 and math.isnan(columns["tokens_per_second"][0])


def test_a_step_that_stands_there_twice_counts_as_it_was_last(tmp_path):
    steps = as_lines({"step": 2, "loss": 9.0}, {"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.5})
    assert steps_of(logged(tmp_path, steps=steps)) == {"step": [1.0, 2.0], "loss": [0.7, 0.5]}


def test_half_a_line_and_what_is_no_number_cost_nothing_but_themselves(tmp_path):
    steps = (
        as_lines({"step": 1, "loss": math.nan, "note": "x"}, {"step": 2, "loss": math.inf}, [3], {"loss": 1.0})
        + b'\xff\xfe\n{"step": true, "loss": 1}\n{"step": -1}\n{"step": 3, "loss": 1e999, "sure": true}\n'
        + b'{"step": 4, "loss": '
        + b"9" * 400
        + b'}\n{"step": 5, "loss": null}\n{"step": 6, "loss": 0.25}\n{"step": 7, "lo'
    )
    columns = steps_of(logged(tmp_path, steps=steps))
    assert columns["step"] == [1, 2, 3, 4, 5, 6]
    assert columns["loss"][-1] == 0.25 and not any(map(math.isfinite, columns["loss"][:-1]))
    assert columns.keys() == {"step", "loss"}


def test_without_a_log_there_are_no_columns(tmp_path):
    assert steps_of(Artifact("train", "key1", tmp_path / "gone")) == {}
    (tmp_path / "logs" / "steps.jsonl").mkdir(parents=True)
    assert steps_of(Artifact("train", "key1", tmp_path)) == {}
    assert list(lines_of(Artifact("train", "key1", tmp_path / "gone", pruned=True), "logs/samples.jsonl")) == []


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.dictionaries(
                st.sampled_from(["step", "loss", "x"]),
                st.one_of(st.integers(), st.floats(), st.text(max_size=4), st.none(), st.booleans()),
            ).map(lambda line: json.dumps(line).encode()),
        ),
        max_size=12,
    )
)
def test_whatever_stands_in_the_log_the_columns_are_numbers_of_ascending_steps(tmp_path_factory, texts):
    columns = steps_of(logged(tmp_path_factory.mktemp("logs"), steps=b"\n".join(texts)))
    steps = columns.get("step", [])
    assert all(before < after for before, after in itertools.pairwise(steps))
    assert {len(values) for values in columns.values()} <= {len(steps)}
    assert all(isinstance(value, float) for values in columns.values() for value in values)


def test_a_chart_without_numbers_has_no_picture():
    charts = (*PREFERENCES, DRIFT)
    assert list(pictures_of(charts, {})) == []
    titles = [picture.title for picture in pictures_of(charts, {"step": [1, 2], "loss": [0.7, 0.5], "x": [1, 2]})]
    assert titles == [LOSS.title]
    assert list(pictures_of((LOSS,), {"step": [1, 2], "loss": [math.nan, math.inf]})) == []


def test_of_two_lines_the_one_that_there_is_is_drawn():
    [picture] = pictures_of((DRIFT,), {"step": [1, 2], "log_ratio_per_token/chosen": [0.0, 0.25]})
    assert "chosen: 0 at step 1, 0.25 at step 2" in picture.alt
    assert "rejected" not in picture.alt
    assert "as the reference: 0" in picture.alt


def test_a_picture_has_the_marks_of_its_own_signs_and_of_the_end():
    columns = {"step": [1, 2], "loss": [0.7, 0.5], "rewards/chosen": [0.0, 0.1]}
    marks = [Mark(1, "displacement"), Mark(1, "gradient norm"), Mark(0, "kept"), Mark(2, "stopped")]
    rewards, loss = pictures_of(PREFERENCES, columns, marks)
    assert all(word in rewards.alt for word in ("displacement: step 1", "kept: step 0", "stopped: step 2"))
    assert "gradient norm" not in rewards.alt
    assert "displacement" not in loss.alt and "stopped: step 2" in loss.alt
    assert ">displacement<" in rewards.svg


def test_a_norm_over_decades_is_drawn_on_a_logarithmic_scale():
    [far] = pictures_of((norm_clipped(1.0),), {"step": [1, 2, 3], "grad_norm": [100.0, 0.0, 0.01]})
    [near] = pictures_of((norm_clipped(1.0),), {"step": [1, 2, 3], "grad_norm": [0.4, 0.5, 0.6]})
    assert ">10<" in far.svg and ">0.1<" in far.svg
    assert "clipped above: 1" in near.alt
    assert ">10<" not in near.svg


@pytest.mark.parametrize("bound", [None, "1", math.nan, 10**400])
def test_without_a_bound_a_norm_is_drawn_alone(bound):
    [picture] = pictures_of((norm_clipped(bound),), {"step": [1, 2], "grad_norm": [0.5, 0.6]})
    assert "clipped" not in picture.alt


def test_values_are_shown_in_their_unit_and_from_zero_where_their_height_counts():
    chart = Chart("memory", (("memory_bytes", "memory", PLAIN),), from_zero=True, unit=2.0**30, smooth=False)
    [picture] = pictures_of((chart,), {"step": [1, 2], "memory_bytes": [5 * 2.0**30, 5.5 * 2.0**30]})
    assert "memory: 5 at step 1, 5.5 at step 2" in picture.alt
    assert picture.svg.count(">0<") >= 1 and ">2<" in picture.svg

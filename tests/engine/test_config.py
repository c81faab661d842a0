import dataclasses
import re
import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Self

import pytest
from pydantic import Field, model_validator

import engine.config
from engine.config import Located, Runtime, Strict, load, profile_path
from engine.errors import ConfigError
from engine.toml_text import to_toml


def in_force(toy: Any, *overrides: str) -> dict[str, Any]:
    return toy.settings(*overrides).as_dict()


def refusal(toy: Any, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        toy.settings(*overrides)
    return error.value


def write(toy: Any, text: str) -> None:
    path = engine.config.PROFILES / "toy.toml"
    path.write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.learning_rate=5e-7", 5e-7),
        ("train.learning_rate = 1", 1.0),
        ("train.beta=.5", 0.5),
        ("tokenize.words=all", "all"),
        ("tokenize.words=7", 7),
        ('tokenize.words="all"', "all"),
        ("tokenize.template=指令：{query} 输出", "指令：{query} 输出"),
        ("tokenize.template=two words", "two words"),
        ("tokenize.template=", ""),
        ("tokenize.template=a=b", "a=b"),
        ("tokenize.template=2024", "2024"),
        ("tokenize.template=true", "true"),
        ("tokenize.template=2024-01-01", "2024-01-01"),
        ("tokenize.template=1\nother = 2", "1\nother = 2"),
        ("model.revision=00012345", "00012345"),
        ("model.revision=1e5", "1e5"),
        ("download.files=[\"a.csv\", 'b.csv']", ["a.csv", "b.csv"]),
        ("download.files=data/*.jsonl", "data/*.jsonl"),
        ("download.files=2024", "2024"),
        ("train.lora.targets=['q', 'v']", ["q", "v"]),
        ("train.lora={rank = 4}", {"rank": 4, "targets": "all-linear"}),
        ("train.loss=[{name='sft', weight=2}]", [{"name": "sft", "weight": 2.0}]),
        ("evaluate.labels.anything=3", {"anything": 3}),
        ("runtime.device=cpu", "cpu"),
    ],
)
def test_an_override_means_what_its_field_takes(toy, override, value):
    found: Any = in_force(toy, override)
    for part in override.partition("=")[0].strip().removesuffix(".anything").split("."):
        found = found[part]
    assert found == value


def test_the_last_override_wins_over_the_profile_and_over_earlier_ones(toy):
    write(toy, "[train]\nbeta = 0.2\n")
    assert in_force(toy)["train"]["beta"] == 0.2
    assert in_force(toy, "train.beta=0.3", "train.beta=0.4")["train"]["beta"] == 0.4


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.betta=0.2", "train.beta"),
        ("beta=0.2", "train.beta"),
        ("trian.beta=0.2", "train.beta"),
        ("learning_rat=1", "train.learning_rate"),
        ("sft.learning_rate=1", "train.learning_rate"),
        ("train.lora.rnk=4", "train.lora.rank"),
        ("runtime.devise=cpu", "runtime.device"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_is_named(toy, override, meant):
    error = refusal(toy, override)
    assert error.problem == f"unknown key `{override.partition('=')[0]}`; did you mean `{meant}`?"
    assert error.where == f"override `{override}`"
    assert "dpo config" in error.fix


def test_a_key_like_no_other_is_refused_without_a_guess(toy):
    assert refusal(toy, "xyzzy.quux=1").problem == "unknown key `xyzzy.quux`"


def test_an_unknown_key_of_the_file_is_placed_in_the_file(toy):
    write(toy, "[train]\nbetta = 0.2\n")
    assert refusal(toy).where.endswith("configs/toy.toml")


@pytest.mark.parametrize("table", ["trian", "train.lroa", "tokenize.model"])
def test_an_unknown_table_is_refused_even_when_it_is_empty(toy, table):
    write(toy, f"[{table}]\n")
    assert f"unknown key `{table}`" in refusal(toy).problem


def test_an_unknown_key_inside_a_list_is_named_with_its_place(toy):
    error = refusal(toy, "train.loss=[{name='sft', wieght=2}]")
    assert error.problem == "unknown key `train.loss.0.wieght`"
    assert error.where.startswith("override")


def test_the_place_of_a_wrong_value_is_the_override_that_set_it_last(toy):
    error = refusal(toy, "train.lora.rank=4", "train.lora={rank = 5}", "train.lora.rank=x")
    assert error.where == "override `train.lora.rank=x`"


def test_an_override_of_several_lines_sets_one_key_only(toy):
    assert refusal(toy, "tokenize.words=1\ntemplate = 'x'").problem == (
        "`tokenize.words` cannot be \"1\\ntemplate = 'x'\""
    )


def test_a_missing_key_is_named_with_its_place(toy):
    assert refusal(toy, "train.loss=[{weight=2}]").problem == "`train.loss.0` lacks `name`"


@pytest.mark.parametrize(
    ("override", "problem", "expected"),
    [
        ("train.beta=0", "`train.beta` cannot be 0", "greater than 0"),
        ("train.beta=nan", "`train.beta` cannot be nan", "a finite number"),
        ("train.beta=true", "`train.beta` cannot be True", "a number or a text, not true or false"),
        ("tokenize.words=false", "`tokenize.words` cannot be False", "a number or a text, not true or false"),
        ("train.lora.rank=true", "`train.lora.rank` cannot be True", "a number or a text, not true or false"),
        (
            "train.loss=[{name='x', weight=true}]",
            "`train.loss.0.weight` cannot be True",
            "a number or a text, not true or false",
        ),
        (
            "evaluate.labels={a=true}",
            "`evaluate.labels` cannot be {'a': True}",
            "a number or a text, not true or false",
        ),
        ("train.beta=a lot", "`train.beta` cannot be 'a lot'", "a valid number, unable to parse string as a number"),
        ("download.size=-1", "`download.size` cannot be -1", "greater than or equal to 0"),
        ("download.size=2.5", "`download.size` cannot be 2.5", "a valid integer, got a number with a fractional part"),
        ("runtime.device=tpu", "`runtime.device` cannot be 'tpu'", "'auto', 'cpu' or 'cuda'"),
        ("train.loss=[{name=1}]", "`train.loss.0.name` cannot be 1", "a valid string"),
    ],
)
def test_an_impossible_value_is_refused_with_what_is_possible(toy, override, problem, expected):
    error = refusal(toy, override)
    assert (error.problem, error.expected, error.where) == (problem, expected, f"override `{override}`")


def test_every_kind_of_value_that_a_field_takes_is_named(toy):
    error = refusal(toy, "tokenize.words=some")
    assert error.problem == "`tokenize.words` cannot be 'some'"
    assert "integer" in error.expected
    assert "'all'" in error.expected


class Range(Strict):
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


def test_values_that_do_not_go_together_are_told_in_the_words_of_the_config(toy):
    with pytest.raises(ConfigError) as error:
        load("toy", ["range.low=3"], [SimpleNamespace(name="range", config=Range)], {})
    assert error.value.problem == "`range` does not hold together"
    assert error.value.expected == "low must not be above high"
    assert error.value.where == "override `range.low=3`"


@pytest.mark.parametrize("override", ["train.beta", "=3", "", " = 1"])
def test_an_override_without_a_key_or_a_value_is_refused(toy, override):
    assert "cannot read the override" in refusal(toy, override).problem


def test_a_table_cannot_be_set_to_a_value_nor_a_value_be_given_keys(toy):
    assert refusal(toy, "train=3").problem == "`train` is a table, not a value"
    error = refusal(toy, "train.beta=1", "train.beta.deep=3")
    assert error.problem == "`train.beta.deep` cannot be set: `train.beta` is a value, not a table"
    assert error.fix == "set `train.beta` as a whole"


def test_the_model_table_reaches_every_stage_that_has_one_and_cannot_be_set_there(toy):
    settings = toy.settings("model.name=some/model")
    models = {name: config.model.name for name, config in settings.stages.items() if hasattr(config, "model")}
    assert models == dict.fromkeys(["tokenize", "sft", "train"], "some/model")
    assert refusal(toy, "train.model.name=other/model").problem.startswith("unknown key `train.model.name`")


def test_a_profile_that_is_missing_is_named_with_the_nearest(toy):
    with pytest.raises(ConfigError) as error:
        profile_path("tooy")
    assert error.value.problem == "there is no profile `tooy`; did you mean `toy`?"
    with pytest.raises(ConfigError, match="there is no profile"):
        profile_path("nowhere/my.toml")


def test_a_profile_may_be_the_path_of_a_file(toy, tmp_path):
    path = tmp_path / "my own.toml"
    path.write_text("[train]\nbeta = 0.7\n")
    settings = load(str(path), ["train.learning_rate=1"], toy.stages, {})
    assert settings.stages["train"].beta == 0.7
    assert shlex.split(settings.command("run", "--until", "sft")) == [
        *("dpo", "run", "--profile", str(path), "--until", "sft", "--set", "train.learning_rate=1")
    ]


@pytest.mark.parametrize("content", [b"[train\nbeta = 1", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_profile_that_is_no_toml_is_refused(toy, content):
    (engine.config.PROFILES / "toy.toml").write_bytes(content)
    error = refusal(toy)
    assert "is not valid TOML" in error.problem
    assert error.found


def test_a_profile_that_cannot_be_read_is_refused(toy, monkeypatch):
    def refused(self: Path, encoding: str) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)
    assert "cannot be read" in refusal(toy).problem


def test_everything_in_force_written_as_a_profile_is_in_force_again(toy, tmp_path):
    before = in_force(toy, "train.loss=[{name='sft', weight=2}]", "model.name=x/y", 'tokenize.template=值 "q" \\ \t')
    path = tmp_path / "again.toml"
    path.write_text(to_toml({name: table for name, table in before.items() if name != "profile"}))
    again = load(str(path), [], toy.stages, {"model": type(toy.settings().shared["model"])}).as_dict()
    assert again | {"profile": "toy"} == before
    assert tomllib.loads(path.read_text())


def test_only_what_differs_from_the_defaults_counts_as_changed(toy):
    write(toy, "[train]\nbeta = 0.1\n[train.lora]\nrank = 4\n[model]\nname = 'x/y'\n[runtime]\nthreads = 1\n")
    assert toy.settings("tokenize.words=all").changed() == {
        "model.name": "x/y",
        "tokenize.words": "all",
        "train.lora.rank": 4,
        "runtime.threads": 1,
    }


def test_a_config_in_a_field_is_held_against_what_that_field_has_by_default():
    class Inner(Strict):
        size: int = 1
        names: list[str] = Field(default=[])

    class Outer(Strict):
        inner: Inner = Inner(size=32)
        plain: Inner = Inner()

    assert dict(Outer().changed("at")) == {}
    assert dict(Outer(inner=Inner(size=32, names=["a"])).changed("at")) == {"at.inner.names": ["a"]}
    assert dict(Outer(inner=Inner(), plain=Inner(size=2)).changed("at")) == {"at.inner.size": 1, "at.plain.size": 2}


def test_the_identity_leaves_out_where_things_lie_at_any_depth():
    class Inner(Strict):
        path: Annotated[str, Located()] = "here"
        size: int = 1

    class Outer(Strict):
        inner: Inner = Inner()
        many: list[Inner] = Field(default=[Inner(), Inner(size=2)])
        named: dict[str, Inner] = Field(default={"a": Inner()})
        folder: Annotated[Path, Located] = Path("there")
        other: Path = Path("kept")

    assert Outer().identity() == {
        "inner": {"size": 1},
        "many": [{"size": 1}, {"size": 2}],
        "named": {"a": {"size": 1}},
        "other": "kept",
    }


def test_a_config_cannot_be_changed_after_it_was_checked():
    with pytest.raises(ValueError, match="frozen"):
        Runtime().threads = 3


@pytest.mark.parametrize("value", ["9" * 5_000, "0x" + "f" * 5_000, f"[{2**63}]", "{a = 0b" + "1" * 99 + "}"])
def test_a_number_beyond_64_bits_is_refused_by_its_key(toy, value):
    with pytest.raises(ConfigError, match=r"train\.beta"):
        toy.settings(f"train.beta={value}")


def test_a_profile_with_a_number_of_thousands_of_digits_is_refused(toy, tmp_path):
    (tmp_path / "huge.toml").write_text(f"[train]\nbeta = {'9' * 5_000}")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(str(tmp_path / "huge.toml"), [], toy.stages, {})


@pytest.mark.parametrize("text", ["a = " + "[" * 3_000, f"[{'.'.join('a' * 2_000)}]\nb = 1"])
def test_a_profile_that_is_nested_without_end_is_refused(toy, tmp_path, text):
    (tmp_path / "deep.toml").write_text(text)
    with pytest.raises(ConfigError, match="nested too deeply"):
        load(str(tmp_path / "deep.toml"), [], toy.stages, {})
    with pytest.raises(ConfigError, match=r"`train\.beta` is nested too deeply"):
        toy.settings(f"train.beta={'[' * 3_000}")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_profile_that_no_file_can_be_called_is_not_there(name):
    with pytest.raises(ConfigError, match="there is no profile"):
        profile_path(name)


@pytest.mark.parametrize(
    ("profile", "name"),
    [
        ("toy", r"toy"),
        ("a/b/nightly.toml", r"nightly-[0-9a-f]{8}"),
        ("v1.2", r"v1\.2"),
        ("my night!.toml", r"my-night-[0-9a-f]{8}"),
        ("...toml", r"profile-[0-9a-f]{8}"),
    ],
)
def test_the_model_in_service_has_the_name_of_the_profile_unless_another_is_given(toy, profile, name):
    settings = dataclasses.replace(toy.settings(), profile=profile)
    assert re.fullmatch(name, settings.named_runtime.service)
    assert (settings.runtime.service, settings.changed().get("runtime.service")) == ("", None)
    given = dataclasses.replace(toy.settings("runtime.service=shared"), profile=profile)
    assert given.named_runtime.service == "shared"


def test_two_files_of_one_name_in_two_folders_have_a_service_each(toy, tmp_path):
    names = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.toml").touch()
        profile = str(tmp_path / folder / "mine.toml")
        names.add(dataclasses.replace(toy.settings(), profile=profile).named_runtime.service)
    assert len(names) == 2


@pytest.mark.parametrize("wrong", ["../x", "a/b", ".", "a b", "x" * 65])
def test_a_name_that_is_no_folder_is_refused(toy, wrong):
    with pytest.raises(ConfigError):
        toy.settings(f"runtime.service={wrong}")


def test_tensorboard_is_told_unless_others_or_nobody_is_asked_for(toy):
    assert toy.settings().runtime.trackers == ["tensorboard"]
    assert toy.settings("runtime.trackers=[]").runtime.trackers == []
    assert toy.settings('runtime.trackers=["mlflow", "tensorboard"]').runtime.trackers == ["mlflow", "tensorboard"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ('runtime.trackers=["tensorboard", "tensorboard"]', "every tracker once"),
        ('runtime.trackers=["tensorbored"]', "runtime.trackers"),
        ("runtime.tracker_project=it's", "runtime.tracker_project"),
        ("runtime.tracker_project=", "runtime.tracker_project"),
    ],
)
def test_a_tracker_that_does_not_exist_or_comes_twice_is_named_and_so_is_a_project_that_a_tracker_could_not_find(
    toy, override, words
):
    with pytest.raises(ConfigError, match=words):
        toy.settings(override)


def test_a_tracker_whose_package_is_missing_is_told_before_anything_runs_with_what_brings_it(toy, monkeypatch):
    monkeypatch.setattr("engine.config.find_spec", lambda name: None if name == "wandb" else "there")
    with pytest.raises(ConfigError, match="the tracker `wandb` needs the package `wandb`") as caught:
        toy.settings('runtime.trackers=["tensorboard", "wandb"]')
    assert "pip install '.[wandb]'" in caught.value.fix

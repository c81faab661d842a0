from pydantic import BaseModel, ValidationError

from engine.keys import as_the_field_takes_it, is_inside_free_table, known_keys, leaves, nearest, problem_of


class Inner(BaseModel):
    rank: int = 1
    pattern: dict[str, int] = {}


class Table(BaseModel):
    name: str = ""
    size: int | str = 0
    inner: Inner = Inner()
    free: dict[str, float] = {}
    many: list[Inner] = []


SCHEMA = {"model": Inner, "train": Table}


def test_leaves_are_values_and_empty_tables():
    assert list(leaves({"a": {"b": 1, "c": {"d": []}}, "e": {}})) == [("a.b", 1), ("a.c.d", []), ("e", {})]


def test_a_shared_table_is_known_at_the_top_only():
    class Stage(BaseModel):
        model: Inner = Inner()
        modelled: int = 0

    assert known_keys({"model": Inner, "sft": Stage}, {"model"}) == {"model.rank", "model.pattern", "sft.modelled"}


def test_only_a_dict_takes_any_key():
    for key in ("train.free.any", "train.free.any.more", "train.inner.pattern.layers.0"):
        assert is_inside_free_table(key, SCHEMA)
    for key in ("train.free", "train.inner.any", "train.any.any", "nowhere.free.any"):
        assert not is_inside_free_table(key, SCHEMA)


def test_the_nearest_key_is_the_one_with_the_same_last_part_when_nothing_looks_alike():
    assert nearest("zzzzzzzzzzzzzzzzzzzz.rank", ["a.rank", "a.size"]) == "; did you mean `a.rank`?"
    assert nearest("qqqq", ["a.rank"]) == ""


def test_text_stays_text_only_where_the_field_takes_no_such_value():
    assert as_the_field_takes_it("train.name", 7, "7", SCHEMA) == "7"
    assert as_the_field_takes_it("train.size", 7, "7", SCHEMA) == 7
    assert as_the_field_takes_it("train.inner.rank", 2.5, "2.5", SCHEMA) == 2.5
    assert as_the_field_takes_it("train.nothing", 7, "7", SCHEMA) == 7
    assert as_the_field_takes_it("train.name.deeper", 7, "7", SCHEMA) == 7


def test_the_place_of_a_problem_leaves_out_the_branches_of_a_union():
    table = {"size": [], "many": [{"rank": 1}, {"rank": "x"}]}
    try:
        Table.model_validate(table)
    except ValidationError as error:
        key, problem, expected = problem_of(error, "train", table)
    assert (key, problem) == ("train.size", "`train.size` cannot be []")
    assert expected == "a valid integer or a valid string"


def test_the_place_of_a_problem_reaches_into_lists():
    table = {"many": [{"rank": 1}, {"rank": "x"}]}
    try:
        Table.model_validate(table)
    except ValidationError as error:
        assert problem_of(error, "train", table)[0] == "train.many.1.rank"

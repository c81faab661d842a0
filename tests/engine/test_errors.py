import pytest

from engine import errors


def test_an_error_shows_what_was_given_line_by_line_and_nothing_else():
    error = errors.DataError("a column is missing", expected="chosen", found="prompt, choosen", fix="rename it")
    assert str(error) == "a column is missing\n  expected: chosen\n  found: prompt, choosen\n  fix: rename it"
    assert error.where == ""


def test_an_error_without_details_is_its_problem_alone():
    assert str(errors.PipelineError("it broke")) == "it broke"


@pytest.mark.parametrize(
    "kind", [each for each in vars(errors).values() if isinstance(each, type) and each is not errors.PipelineError]
)
def test_every_error_is_a_pipeline_error_and_only_one_kind_is_transient(kind: type[Exception]):
    assert issubclass(kind, errors.PipelineError)
    assert issubclass(kind, errors.TransientError) == (kind is errors.TransientError)

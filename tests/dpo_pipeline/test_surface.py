import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import dpo_pipeline as dpo

HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "prefect", "matplotlib"}
FUNCTIONS = ["run", "status", "runs", "load_model", "chat", "read_pairs"]


def test_few_names_are_meant_for_others_and_all_of_them_are_there_and_told():
    assert len(dpo.__all__) <= 10
    for name in dpo.__all__:
        assert inspect.getdoc(getattr(dpo, name)), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_says_what_it_raises_shows_an_example_and_names_its_types(name):
    function = getattr(dpo, name)
    told = inspect.getdoc(function)
    assert "Raises:" in told
    assert 2 <= told.count(">>> ") <= 4
    signature = inspect.signature(function)
    assert signature.return_annotation is not signature.empty
    assert all(each.annotation is not each.empty for each in signature.parameters.values())


def test_every_argument_is_told_where_it_is_used_first():
    for name in ("run", "load_model", "chat", "read_pairs"):
        told = inspect.getdoc(getattr(dpo, name)).partition("Args:")[2]
        missing = [each for each in inspect.signature(getattr(dpo, name)).parameters if each not in told]
        assert not missing, (name, missing)


def test_importing_it_imports_nothing_heavy():
    script = f"import sys, dpo_pipeline; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_the_examples_in_the_docstrings_do_what_they_say(folder):
    whole = dpo.run("demo")  # what the examples of single functions look back at
    assert whole.state == "completed"
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    tried = []
    for each in (dpo, dpo.Run, dpo.load_model, dpo.chat, dpo.read_pairs, dpo.runs, dpo.status, dpo.run):
        for examples in finder.find(each, each.__name__, globs={"dpo": dpo}):
            runner.run(examples)
            tried += examples.examples
    assert len(tried) >= 14
    assert runner.summarize(verbose=False).failed == 0

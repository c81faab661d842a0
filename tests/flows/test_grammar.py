import pytest

from flows.cli import main as dpo
from flows.cli import parser
from tasks import STAGES

EVERY = {
    *("run", "status", "path", "config", "report", "compare", "why", "promoted", "promote", "rollback", "verify", "gc"),
    *("init", "data", "chat", "export", "completion"),
}


def commands(grammar):
    return next(action for action in grammar._actions if action.dest == "==SUPPRESS==" or action.choices).choices


def help_of(words, capsys):
    with pytest.raises(SystemExit) as stop:
        dpo(words)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_help_names_every_command_in_its_group_and_what_the_exit_codes_mean(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    page = help_of(["--help"], capsys)
    named = {line.split()[0] for line in page.splitlines() if line.startswith("  ") and line[2] != " "}
    assert named == EVERY == set(commands(parser()))
    assert "2 wrong usage" in " ".join(page.split())
    assert max(map(len, page.splitlines())) <= 100


def test_the_help_names_the_stages_in_their_order(capsys):
    page = " ".join(help_of(["--help"], capsys).split())
    assert ", ".join(stage.name for stage in STAGES) in page


@pytest.mark.parametrize("command", sorted(EVERY))
def test_no_line_of_a_help_is_wider_than_eighty_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, help_of([command, "--help"], capsys).splitlines())) <= 80


@pytest.mark.parametrize(("command", "said"), [("run", "rebuild"), ("status", "tell"), ("path", "changes nothing")])
def test_force_is_told_as_what_it_does_in_each_command(command, said, capsys):
    assert f"--force {said}" in " ".join(help_of([command, "--help"], capsys).split())


@pytest.mark.parametrize("command", sorted(EVERY))
def test_every_command_says_what_it_does_in_a_sentence(command, capsys):
    page = help_of([command, "--help"], capsys)
    assert page.startswith(f"usage: dpo {command}")
    assert " ".join(page.split()).count(".") >= 1


@pytest.mark.parametrize("command", sorted(EVERY - {"init", "data", "chat", "completion"}))
def test_whatever_prints_a_table_prints_json_too(command):
    options = [word for action in commands(parser())[command]._actions for word in action.option_strings]
    assert "--json" in options


@pytest.mark.parametrize("command", ["run", "status", "config", "report"])
def test_commands_take_a_profile_and_keys(command):
    words = [command, "--profile", "seed", "--set", "train.beta=0.2", "--set", "train.epochs=2"]
    given = parser().parse_args(words)
    assert (given.profile, given.set) == ("seed", ["train.beta=0.2", "train.epochs=2"])

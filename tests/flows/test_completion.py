import shutil
import subprocess

import pytest

import tasks
from flows._completion import SHELLS, script

ASK = """
{script}
COMP_WORDS=({words}); COMP_CWORD={at}; COMPREPLY=(); _shtab_dpo; echo "${{COMPREPLY[@]}}"
"""


def offered(*words):
    """What bash would offer for the last of the words."""
    quoted = " ".join(f"'{word}'" for word in words)
    asked = ASK.format(script=script("bash"), words=quoted, at=len(words) - 1)
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_is_offered_commands_profiles_stages_and_keys():
    assert {"promote", "promoted"} == set(offered("dpo", "pro"))
    assert {"demo", "seed"} <= set(offered("dpo", "run", "--profile", ""))
    assert offered("dpo", "path", "") == [stage.name for stage in tasks.STAGES]
    assert offered("dpo", "run", "--from", "ref") == ["reference"]
    assert "train.beta=" in offered("dpo", "run", "--set", "train.b")


@pytest.mark.parametrize("shell", SHELLS)
def test_there_is_a_script_for_every_shell(shell):
    text = script(shell)
    assert "promote" in text
    assert "train.learning_rate=" in text


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh")
def test_zsh_takes_the_script():
    subprocess.run(["zsh", "-n"], input=script("zsh"), text=True, check=True)

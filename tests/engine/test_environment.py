import platform

import engine.environment
from engine.environment import environment


def test_the_environment_names_the_versions_that_numbers_depend_on():
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["torch"].split(".")[0].isdigit()


def test_a_package_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(engine.environment, "_PACKAGES", ("torch", "no-such-package-here"))
    assert "no-such-package-here" not in environment()

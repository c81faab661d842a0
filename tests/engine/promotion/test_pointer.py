import pytest

from engine.errors import StoreError
from engine.promotion.pointer import Pointer, names
from engine.promotion.service import Service


def test_services_are_the_folders_below_promoted_and_each_has_its_own_model(root, version):
    assert names(root) == []
    first, second = version("a"), version("b")
    Service(root, "demo").put(first)
    Service(root, "mine").put(second)
    (root / "promoted" / ".odd").mkdir()
    (root / "promoted" / "link").symlink_to("demo")
    assert names(root) == ["demo", "mine"]
    assert (Pointer(root, "demo").current(), Pointer(root, "mine").current()) == (first, second)
    assert Pointer(root, "mine").history()[0].replaced is None
    assert (Pointer(root, "mine").kept(), Pointer(root, "other").kept()) == ([second], [])


def test_the_link_of_each_is_its_own(root, version):
    first = version("a")
    Service(root, "demo").put(first)
    assert Pointer(root, "demo").is_pointed()
    assert not Pointer(root, "mine").leads_to(first)
    assert Pointer(root, "mine").is_pointed(), "nothing is in service there"


def test_a_folder_that_cannot_be_read_is_an_error(root, monkeypatch):
    (root / "promoted").mkdir(parents=True)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(StoreError, match="cannot be told what is in service"):
        names(root)


def test_without_a_name_there_is_no_service(root):
    with pytest.raises(ValueError, match="without a name"):
        Pointer(root, "")

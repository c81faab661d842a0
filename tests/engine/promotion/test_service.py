import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import StoreError, TransientError
from engine.locks import holding
from engine.policies import given_policy
from engine.promotion.service import Service, services
from engine.promotion.state import State
from engine.sources import ModelSource, Sources
from engine.store import Store

STEPS = ("mkdir", "fsync", "replace", "rename", "symlink", "unlink")
KILLED, NAME = 77, "mine"


def linked(root: Path) -> str | None:
    """The version that a reader who knows only of the link would read; it has to be whole."""
    link = root / "promoted" / NAME / "current"
    if not os.path.lexists(link):
        return None
    folder = link.resolve()
    assert (folder / "adapter" / "weights").is_file()
    return folder.name


def served(root: Path) -> str | None:
    """The version in service, when state and link agree."""
    version = Service(root, NAME).current()
    assert linked(root) == version
    return version


class TestPutting:
    def test_begins_with_nothing_and_puts_the_first_there(self, root, version):
        first = version("a")
        assert (Service(root, NAME).current(), Service(root, NAME).history(), served(root)) == (None, (), None)
        event = Service(root, NAME).put(first, "run 1")
        assert (event.action, event.version, event.replaced, event.run) == ("promoted", first, None, "run 1")
        assert served(root) == first
        assert (root / "promoted" / NAME / "current").readlink() == Path("..") / ".." / "promote" / first
        assert Service(root, NAME).history() == (event,)

    def test_survives_that_the_whole_root_is_moved(self, root, version):
        first = version("a")
        Service(root, NAME).put(first)
        root.rename(root.with_name("elsewhere"))
        assert served(root.with_name("elsewhere")) == first

    def test_again_changes_nothing_whatever_it_was_held_against(self, root, version):
        first = version("a")
        same_model = version("a judged by other rules", candidate="model a")
        Service(root, NAME).put(first)
        assert Service(root, NAME).put(first) is None
        assert Service(root, NAME).put(same_model) is None
        assert len(Service(root, NAME).history()) == 1
        assert served(root) == first

    def test_is_refused_where_the_model_in_service_changed_since_and_done_by_force(self, root, version):
        first, other = version("a"), version("b")
        late = version("c", against=None)
        Service(root, NAME).put(first)
        Service(root, NAME).put(other, forced=True)
        with pytest.raises(StoreError, match="changed since") as error:
            Service(root, NAME).put(late)
        assert (error.value.expected, error.value.found) == ("the one it was held against: none", other)
        assert served(root) == other
        assert Service(root, NAME).put(late, forced=True).action == "forced"
        assert served(root) == late

    @pytest.mark.parametrize("stage", ["promote", "sft", "tokenize"])
    @pytest.mark.parametrize("harm", ["gone", "changed"])
    def test_is_refused_where_it_its_policy_or_its_tokenizer_is_not_whole(self, root, version, stage, harm):
        first = version("a")
        Service(root, NAME).put(first)
        second = version("b", against=first)
        key = second if stage == "promote" else Store(root).find("promote", second).handed_down["stages"][stage]
        folder = root / stage / key
        if harm == "gone":
            shutil.rmtree(folder)
        else:
            (folder / ("adapter/weights" if stage == "promote" else "file")).write_text("other", "utf-8")
        with pytest.raises(StoreError):
            Service(root, NAME).put(second, forced=True)
        assert served(root) == first

    def test_of_what_does_not_say_which_model_it_is_is_refused(self, root, seal):
        silent = seal("promote", "silent", {"handed_down.json": "{}"}).key
        for wrong in (silent, "0" * 16, "../../etc"):
            with pytest.raises(StoreError):
                Service(root, NAME).put(wrong, forced=True)
        assert Service(root, NAME).history() == ()


class TestOffering:
    def test_puts_a_new_model_there_and_says_what_became_of_it(self, root, version):
        first = version("a")
        assert Service(root, NAME).offer(first) == "promoted"
        assert Service(root, NAME).offer(first) == "in service"
        assert Service(root, NAME).offer(version("b", against=first)) == "promoted"

    def test_does_not_undo_that_a_model_was_taken_back_or_replaced(self, root, version):
        first = version("a")
        second = version("b", against=first)
        Service(root, NAME).offer(first)
        Service(root, NAME).offer(second)
        assert Service(root, NAME).offer(first) == "was in service"
        Service(root, NAME).rollback()
        assert Service(root, NAME).offer(second) == "was in service"
        assert Service(root, NAME).offer(version("b again", against=first, candidate="model b")) == "was in service"
        assert served(root) == first

    def test_against_another_model_than_the_one_in_service_is_an_error(self, root, version):
        Service(root, NAME).offer(version("a"))
        with pytest.raises(StoreError, match="changed since"):
            Service(root, NAME).offer(version("b", against=None))


class TestGoingBack:
    def test_puts_the_one_before_there_step_by_step(self, root, version):
        names = [version(name) for name in "abc"]
        for name in names:
            Service(root, NAME).put(name, forced=True)
        assert Service(root, NAME).rollback().version == names[1]
        assert Service(root, NAME).rollback().replaced == names[1]
        assert served(root) == names[0]
        with pytest.raises(StoreError, match="no model in service before this one"):
            Service(root, NAME).rollback()
        assert Service(root, NAME).rollback(names[2]).action == "rolled back"
        assert served(root) == names[2]

    def test_to_what_never_was_there_or_is_there_now_is_refused_and_says_what_may_be_chosen(self, root, version):
        with pytest.raises(StoreError, match="there is no model in service"):
            Service(root, NAME).rollback()
        first, second = version("a"), version("b")
        Service(root, NAME).put(first)
        Service(root, NAME).put(second, forced=True)
        for wrong, problem in ((version("c"), "never was"), (second, "is in service"), ("../x", "never was")):
            with pytest.raises(StoreError, match=problem) as error:
                Service(root, NAME).rollback(wrong)
            assert error.value.expected == f"one of {first}"
        assert served(root) == second

    def test_to_what_is_broken_is_refused(self, root, version):
        first = version("a")
        Service(root, NAME).put(first)
        Service(root, NAME).put(version("b"), forced=True)
        (root / "promote" / first / "adapter" / "weights").write_text("x", "utf-8")
        with pytest.raises(StoreError, match="cannot be put into service") as error:
            Service(root, NAME).rollback()
        assert "adapter/weights" in error.value.found


class TestDamage:
    @pytest.mark.parametrize("harm", ["", "{", "[]", "gone", "folder"])
    def test_of_the_state_is_an_error_that_says_what_to_do_and_loses_nothing(self, root, version, harm):
        first = version("a")
        Service(root, NAME).put(first)
        state = root / "promoted" / NAME / "state.json"
        whole = state.read_text("utf-8")
        state.unlink()
        if harm == "folder":
            state.mkdir()
        elif harm != "gone":
            state.write_text(harm, "utf-8")
        put = partial(Service(root, NAME).put, version("b"), forced=True)
        for action in (Service(root, NAME).current, Service(root, NAME).rollback, put):
            with pytest.raises(StoreError, match="cannot be told which model is in service") as error:
                action()
        assert "put a copy of it back" in error.value.fix
        assert linked(root) == first
        shutil.rmtree(state) if harm == "folder" else state.unlink(missing_ok=True)
        state.write_text(whole, "utf-8")
        assert served(root) == first

    @pytest.mark.parametrize("harm", ["gone", "elsewhere"])
    def test_of_the_link_is_mended(self, root, version, harm):
        first = version("a")
        Service(root, NAME).put(first)
        link = root / "promoted" / NAME / "current"
        link.unlink()
        if harm == "elsewhere":
            link.symlink_to("/nowhere")
        assert not Service(root, NAME).is_pointed()
        Service(root, NAME).repair()
        assert served(root) == first

    def test_something_else_in_the_place_of_the_link_is_an_error_and_left_alone(self, root, version):
        place = root / "promoted" / NAME / "current"
        place.mkdir(parents=True)
        (place / "mine").write_text("x", "utf-8")
        with pytest.raises(StoreError, match="cannot be switched") as error:
            Service(root, NAME).put(version("a"))
        assert "move it away" in error.value.fix
        assert (place / "mine").is_file()
        assert Service(root, NAME).current() is None, "nothing is in service that no reader finds"

    def test_a_file_system_without_links_is_named_before_anything_is_switched(self, root, version, monkeypatch):
        first = version("a")

        def refuse(*given: object, **named: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "symlink", refuse)
        with pytest.raises(StoreError, match="cannot be switched") as error:
            Service(root, NAME).put(first)
        assert "a file system that has links" in error.value.expected
        assert Service(root, NAME).current() is None


class TestWayBack:
    def test_leads_to_the_latest_that_can_serve(self, root, version):
        names = [version(name) for name in "abc"]
        for name in names:
            Service(root, NAME).put(name, forced=True)
        assert Service(root, NAME).fallback() == names[1]
        shutil.rmtree(root / "promote" / names[1])
        assert Service(root, NAME).way_back() == f"`dpo rollback --to {names[0]}` under a profile of service {NAME}"
        shutil.rmtree(root / "promote" / names[0])
        assert Service(root, NAME).fallback() is None
        assert "make it again" in Service(root, NAME).way_back()

    def test_names_what_was_taken_back_where_nothing_was_before(self, root, version):
        first, second = version("a"), version("b")
        Service(root, NAME).put(first)
        Service(root, NAME).put(second, forced=True)
        Service(root, NAME).rollback()
        assert Service(root, NAME).fallback() == second
        with pytest.raises(StoreError) as error:
            Service(root, NAME).rollback()
        assert error.value.fix == f"dpo rollback --to {second}"

    def test_the_same_model_under_another_version_takes_the_place_of_one_that_is_gone(self, root, version):
        first, again = version("a"), version("a again", against=None, candidate="model a")
        Service(root, NAME).offer(first)
        assert Service(root, NAME).offer(again) == "in service"
        shutil.rmtree(root / "promote" / first)
        assert Service(root, NAME).offer(again) == "promoted"
        assert served(root) == again


class TestGivenPolicy:
    @pytest.fixture
    def given(self, root, version, tmp_path) -> tuple[str, Path]:
        folder = tmp_path / "policy"
        folder.mkdir()
        (folder / "config.json").write_text("{}", "utf-8")
        model = ModelSource(policy=str(folder))
        identities = given_policy(model, Sources(root, network=False))
        return version("a", model=model.model_dump(mode="json"), given_policy=identities), folder

    @pytest.mark.parametrize("harm", ["changed", "gone"])
    def test_that_is_not_what_it_was_keeps_a_version_out_of_service(self, root, given, harm):
        one, folder = given
        assert Service(root, NAME).problems(one) == []
        if harm == "gone":
            shutil.rmtree(folder)
        else:
            (folder / "config.json").write_text("[]", "utf-8")
        assert "the policy that it starts from is gone or changed" in Service(root, NAME).problems(one)[0]
        with pytest.raises(StoreError, match="cannot be put into service"):
            Service(root, NAME).put(one, forced=True)

    def test_of_which_only_the_network_could_tell_passes(self, root, version):
        hub = {"policy": "owner/policy@main"}
        one = version("a", model=ModelSource(policy="owner/policy").model_dump(mode="json"), given_policy=hub)
        assert Service(root, NAME).problems(one) == []


def in_child(action: Callable[[], Any], prepare: Callable[[], None]) -> int:
    """Does something in a forked process that `prepare` may have killed. Returns its exit code."""
    child = os.fork()
    if child == 0:
        try:
            prepare()
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(moment: int) -> None:
    """Has this process end like one that is killed, before or after its n-th step that changes the disk."""
    passed = 0

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **named: Any) -> Any:
            nonlocal passed
            if passed == moment:
                os._exit(KILLED)
            done = real(*given, **named)
            if passed + 1 == moment:
                os._exit(KILLED)
            passed += 2
            return done

        return step

    for name in STEPS:
        setattr(os, name, wrapped(getattr(os, name)))


class TestKills:
    def kill_everywhere(self, root: Path, before: str | None, after: str, action: Callable[[], Any]) -> int:
        """Kills the action at every step, each time from the same start. Returns how many kills there were."""
        folder, start = root / "promoted" / NAME, root / "start"
        if folder.exists():
            shutil.copytree(folder, start, symlinks=True)
        for moment in range(1000):
            shutil.rmtree(folder, ignore_errors=True)
            if start.exists():
                shutil.copytree(start, folder, symlinks=True)
            code = in_child(action, lambda moment=moment: die_at(moment))
            assert code in (0, KILLED)
            assert Service(root, NAME).current() in (before, after)
            assert linked(root) in (before, after)
            if code == 0:
                return moment
            action()
            assert served(root) == after
            assert [path.name for path in folder.iterdir() if path.name == ".current"] == []
        raise AssertionError("it never ended")

    def test_while_the_first_is_put_there_leave_it_or_nothing(self, root, version):
        first = version("a")
        assert self.kill_everywhere(root, None, first, lambda: Service(root, NAME).offer(first)) > 10

    def test_while_one_replaces_another_leave_the_old_or_the_new(self, root, version):
        first = version("a")
        second = version("b", against=first)
        Service(root, NAME).put(first)
        assert self.kill_everywhere(root, first, second, lambda: Service(root, NAME).offer(second)) > 8

    def test_while_going_back_leave_the_old_or_the_new(self, root, version):
        first, second = version("a"), version("b")
        Service(root, NAME).put(first)
        Service(root, NAME).put(second, forced=True)

        def back() -> None:
            if Service(root, NAME).current() == second:
                Service(root, NAME).rollback(first)
            Service(root, NAME).repair()

        assert self.kill_everywhere(root, second, first, back) > 8

    @pytest.mark.parametrize("step", ["fsync", "replace", "symlink", "rename"])
    def test_a_disk_that_refuses_is_an_error_and_leaves_the_old_or_the_new(self, root, version, monkeypatch, step):
        first, second = version("a"), version("b")
        Service(root, NAME).put(first)

        def refuse(*given: Any, **named: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr(os, step, refuse)
            with pytest.raises(StoreError, match="cannot be switched"):
                Service(root, NAME).put(second, forced=True)
        assert linked(root) == first
        Service(root, NAME).repair()
        assert served(root) in (first, second)


class TestCompany:
    def test_every_service_has_a_model_of_its_own_and_keeps_it(self, root, version):
        first, second = version("a"), version("b")
        assert Service(root, "demo").offer(first) == "promoted"
        assert Service(root, NAME).offer(second) == "promoted", "it is held against none, and none is in service here"
        assert [(each.name, each.current()) for each in services(root)] == [("demo", first), (NAME, second)]

    def test_a_reader_meets_a_whole_model_at_every_moment_of_a_hundred_switches(self, root, version):
        names = [version("a"), version("b")]
        Service(root, NAME).put(names[0])
        seen, over = set(), threading.Event()
        troubles: list[BaseException] = []

        def read() -> None:
            try:
                while not over.is_set():
                    folder = root / "promoted" / NAME / (root / "promoted" / NAME / "current").readlink()
                    seen.add((folder / "adapter" / "weights").read_text("utf-8"))
                    assert Service(root, NAME).current() in names
            except BaseException as trouble:
                troubles.append(trouble)

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(100):
            Service(root, NAME).put(names[(number + 1) % 2], forced=True)
        over.set()
        reader.join()
        assert troubles == []
        assert seen == {"a", "b"}
        assert len(Service(root, NAME).history()) == 101

    def test_of_two_that_were_held_against_the_same_only_one_gets_there(self, root, version):
        first = version("a")
        Service(root, NAME).put(first)
        rivals = [version(name, against=first) for name in ("b", "c", "d")]
        done: list[str] = []

        def offer(rival: str) -> None:
            try:
                done.append(Service(root, NAME).offer(rival))
            except StoreError as error:
                done.append(error.problem)

        threads = [threading.Thread(target=offer, args=(rival,)) for rival in rivals]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done.count("promoted") == 1
        assert done.count("the model in service changed since this one was judged") == 2
        assert served(root) in rivals

    def test_a_switch_that_somebody_else_makes_is_waited_for_and_then_an_error_to_try_again(self, root, version):
        first = version("a")
        told: list[BaseException] = []

        def put() -> None:
            try:
                Service(root, NAME, wait_seconds=0).put(first)
            except TransientError as error:
                told.append(error)

        with holding(root / ".locks" / f"promoted-{NAME}", 0, "a test"):
            thread = threading.Thread(target=put)
            thread.start()
            thread.join()
        assert "the switch of the model in service" in str(told[0])
        assert Service(root, NAME).current() is None


class Model:
    """What the service should do, in a few lines of lists."""

    def __init__(self) -> None:
        self.stack: list[str] = []
        self.was: list[str] = []

    def put(self, name: str) -> None:
        if not self.stack or self.stack[-1] != name:
            self.stack.append(name)
            self.was.append(name)

    def back(self, to: str | None) -> bool:
        if to is None:
            to = self.stack[-2] if len(self.stack) > 1 else None
        if to is None or to not in self.was or to == self.stack[-1]:
            return False
        if to in self.stack:
            while self.stack[-1] != to:
                self.stack.pop()
        else:
            self.stack.append(to)
        return True


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=st.lists(st.tuples(st.sampled_from(["put", "back", "back to"]), st.integers(0, 3)), max_size=12))
def test_any_sequence_of_switches_leaves_what_a_list_would_say(root, version, moves):
    names = [version(name) for name in "abcd"]
    shutil.rmtree(root / "promoted" / NAME, ignore_errors=True)
    model = Model()
    for move, number in moves:
        if move == "put":
            Service(root, NAME).put(names[number], forced=True)
            model.put(names[number])
            continue
        to = names[number] if move == "back to" else None
        try:
            Service(root, NAME).rollback(to)
            went = True
        except StoreError:
            went = False
        assert went == model.back(to)
    assert served(root) == (model.stack[-1] if model.stack else None)
    kept = Service(root, NAME).kept()
    assert kept == list(dict.fromkeys(reversed(model.stack)))[:3]
    text = (root / "promoted" / NAME / "state.json").read_text("utf-8") if model.stack else State().to_json()
    assert State.parse(text) == Service(root, NAME).state()


class TestParts:
    def test_are_what_the_last_three_in_service_were_made_of(self, root, version):
        names = [version(name) for name in "abcd"]
        for name in names:
            Service(root, NAME).put(name, forced=True)
        parts = Service(root, NAME).parts()
        assert {key for stage, key in parts if stage == "promote"} == set(names[1:])
        made = Store(root).find("promote", names[3]).handed_down["stages"]
        assert set(made.items()) < parts
        assert len(parts) == 9

    def test_name_a_version_that_is_gone_and_what_is_left_of_the_others(self, root, version):
        first, second = version("a"), version("b")
        Service(root, NAME).put(first)
        Service(root, NAME).put(second, forced=True)
        shutil.rmtree(root / "promote" / first)
        assert ("promote", first) in Service(root, NAME).parts()
        assert len(Service(root, NAME).parts()) == 4

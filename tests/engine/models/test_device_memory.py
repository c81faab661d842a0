import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from engine.models.device_memory import HostMemory, device_memory, group_rooms
from engine.models.memory import fit_budget

MIB = 2**20


def taking(mebibytes: int) -> Callable[[], None]:
    def run() -> None:
        torch.ones(mebibytes * MIB // 4).sum()

    return run


@pytest.mark.parametrize("process", ["/proc/self", "/proc/no/such/process"], ids=["marked", "sampled"])
def test_the_peak_of_real_tensors_on_the_cpu_is_seen_and_not_carried_over(process):
    host = HostMemory(Path(process))
    host.peak_of(taking(400))
    before = host.standing()
    assert 190 <= (host.peak_of(taking(200)) - before) / MIB <= 240
    assert host.standing() - before < 40 * MIB


def test_what_the_allocator_keeps_of_freed_tensors_does_not_count_as_held():
    host = HostMemory()
    taking(16)()  # glibc keeps sizes that it has seen freed before
    before = host.standing()
    taken = [torch.ones(size) for _ in range(60) for size in (2**20, 2**14)]  # 4 MiB, and 64 KiB that stay
    kept = taken[1::2]
    del taken
    assert host.standing() - before < 60 * MIB
    assert host.peak_of(taking(1)) - before < 60 * MIB
    assert len(kept) == 60


def test_what_an_attempt_on_the_cpu_raises_comes_through_and_nobody_goes_on_watching(tmp_path):
    threads = threading.active_count()
    for host in (HostMemory(), HostMemory(tmp_path / "none")):
        with pytest.raises(KeyError):
            host.peak_of(lambda: {}["x"])
        assert threading.active_count() == threads


def test_the_machine_leaves_less_than_it_has_and_more_than_what_stands():
    host = device_memory(torch.device("cpu"))
    assert host.cautious
    assert 0 < host.standing() < host.limit() < 2**50


def test_a_control_group_lowers_what_the_machine_leaves(tmp_path):
    write(tmp_path / "cgroup", "0::/job\n")
    group(tmp_path / "groups/job", 100 * MIB, 40 * MIB, "inactive_file 0\n")
    host = HostMemory(tmp_path, tmp_path / "groups")
    assert host.limit() - host.standing() <= 0.9 * 60 * MIB


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def group(folder: Path, limit: object, usage: int, stat: str, version: int = 2) -> None:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip((*names, "memory.stat"), (limit, usage, stat), strict=True):
        write(folder / name, f"{value}\n")


def test_every_group_above_the_process_counts_and_cached_files_are_free(tmp_path):
    group(tmp_path / "a/b", 1000, 700, "anon 5\ninactive_file 30\nactive_file 4\n")
    group(tmp_path / "a", "max", 900, "")
    group(tmp_path, 2000, 1900, "")
    assert group_rooms("0::/a/b\n", tmp_path) == [334, 100]


def test_groups_of_the_first_version_are_read_below_their_controller(tmp_path):
    group(tmp_path / "memory/a", 1000, 700, "inactive_file 9\ntotal_inactive_file 50\ntotal_active_file 5\n", version=1)
    group(tmp_path / "a", 1, 0, "")
    listing = "5:cpu,cpuacct:/a\n4:memory:/a\n1:name=systemd:/a\n"
    assert group_rooms(listing, tmp_path) == [355]


def test_a_group_that_is_only_visible_from_outside_leaves_the_one_at_the_mount(tmp_path):
    group(tmp_path, 800, 300, "")
    assert group_rooms("0::/docker/4f1c\n", tmp_path) == [500]


@given(st.text() | st.text("0123:/.,memory\n"))
@example("0::/a\0b")
def test_no_listing_of_groups_breaks_anything(tmp_path_factory, listing):
    assert group_rooms(listing, Path("/no/such/mount")) == []


class StandInCuda:
    """torch.cuda's figures of a card of 24,000 bytes, 1,000 of them taken by other processes."""

    allocated, cached, peak, share, emptied = 5_000, 3_000, 0, 1.0, 0

    def memory_allocated(self, device: torch.device) -> int:
        return self.allocated

    def memory_reserved(self, device: torch.device) -> int:
        return self.allocated + self.cached

    def max_memory_allocated(self, device: torch.device) -> int:
        return self.peak

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 24_000 - 1_000 - self.allocated - self.cached, 24_000

    def get_per_process_memory_fraction(self, device: torch.device) -> float:
        return self.share

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.peak = self.allocated

    def empty_cache(self) -> None:
        self.cached, self.emptied = 0, self.emptied + 1


@pytest.fixture
def card(monkeypatch) -> StandInCuda:
    stand_in = StandInCuda()
    for name in (name for name in dir(stand_in) if callable(getattr(stand_in, name)) and not name.startswith("_")):
        monkeypatch.setattr(torch.cuda, name, getattr(stand_in, name))
    return stand_in


def test_what_a_card_leaves_is_what_is_free_and_what_the_allocator_holds_unused(card):
    own = device_memory(torch.device("cuda"))
    assert not own.cautious
    assert own.limit() == 5_000 + int(0.95 * (23_000 - 5_000))
    card.share = 0.5
    assert own.limit() == 5_000 + int(0.95 * (12_000 - 5_000))


def test_on_a_card_the_peak_is_the_allocators_and_the_cache_is_emptied_before_each_attempt(card):
    card.peak = 23_000  # of loading the model

    def attempt(budget: int) -> None:
        card.peak = max(card.peak, card.allocated + 10 * budget)
        if card.peak > 23_000:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    fit = fit_budget(attempt, budget=4_000, smallest=300, memory=device_memory(torch.device("cuda")), what="")
    assert (fit.budget, fit.peak_bytes, fit.standing_bytes, card.emptied) == (1_000, 10_000, 5_000, 3)

import gc
import math
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from engine.errors import MemoryShortageError
from engine.models import memory
from engine.models.device_memory import HostMemory
from engine.models.memory import Fit, fit_budget, memory_plan, shortage_told, size, training_reserve

MIB = 2**20


@dataclass
class Bench:
    """A device that is told what an attempt takes: `cost` is bytes by budget; beyond `hard` bytes it runs out."""

    cost: Callable[[int], int]
    all_bytes: int
    cautious: bool = False
    before: int = 0
    hard: float = math.inf
    tried: list[int] = field(default_factory=list)
    _now: int = 0

    def standing(self) -> int:
        return self.before

    def limit(self) -> int:
        return self.all_bytes

    def peak_of(self, run: Callable[[], None]) -> int:
        run()
        return self._now

    def attempt(self, budget: int) -> None:
        self.tried.append(budget)
        self._now = self.before + self.cost(budget)
        if self._now > self.hard:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    def fit(self, budget: int = 1024, smallest: int = 100, **more: int) -> Fit:
        return fit_budget(self.attempt, budget=budget, smallest=smallest, memory=self, what="pair p7", **more)


def in_proportion(budget: int) -> int:
    return budget * MIB


def gpu(all_mib: int, cost: Callable[[int], int] = in_proportion, **more: int) -> Bench:
    return Bench(cost, all_mib * MIB, hard=all_mib * MIB, **more)


def cpu(all_mib: int, cost: Callable[[int], int] = in_proportion, **more: int) -> Bench:
    return Bench(cost, all_mib * MIB, cautious=True, **more)


def test_a_budget_that_fits_is_kept_and_its_peak_recorded():
    bench = gpu(2000, before=7 * MIB)
    fit = bench.fit()
    assert (fit.budget, fit.peak_bytes, fit.lowered, bench.tried) == (1024, 1024 * MIB, "", [1024])


def test_on_a_gpu_what_runs_out_of_memory_is_halved_until_it_fits():
    bench = gpu(300)
    assert bench.fit().budget == 256
    assert bench.tried == [1024, 512, 256]


def test_on_the_cpu_the_smallest_goes_first_and_nothing_is_run_that_is_expected_not_to_fit():
    bench = cpu(300)
    fit = bench.fit()
    assert (fit.budget, fit.peak_bytes) == (256, 256 * MIB)
    assert bench.tried == [100, 256]


def test_on_the_cpu_a_part_of_the_peak_that_does_not_grow_costs_no_budget():
    """In proportion to the smallest, 1,024 tokens would take 10 times as much."""
    bench = cpu(600, lambda budget: (200 + budget // 4) * MIB)
    assert bench.fit().budget == 1024
    assert bench.tried == [100, 256, 512, 1024]


def test_on_the_cpu_two_small_peaks_do_not_vouch_for_a_budget_far_above_them():
    bench = cpu(90, lambda budget: 20 * MIB if budget <= 512 else 10_000 * MIB)
    bench.fit(budget=65_536)
    assert max(bench.tried) <= 1024


def test_a_measured_peak_above_the_limit_lowers_the_budget_even_when_the_device_allowed_it():
    bench = Bench(in_proportion, 5000 * MIB)
    fit = bench.fit(limit_bytes=600 * MIB)
    assert (fit.budget, fit.limit_bytes, bench.tried) == (512, 600 * MIB, [1024, 512])


def test_a_limit_above_what_the_device_has_does_not_raise_it():
    assert gpu(300).fit(limit_bytes=5000 * MIB).limit_bytes == 300 * MIB


def test_room_is_kept_for_what_comes_later_and_what_stands_is_not_free():
    assert gpu(1024).fit().budget == 1024
    assert gpu(1024).fit(reserve_bytes=1).budget == 512
    assert cpu(1024, before=1).fit().budget == 512


def test_a_budget_below_the_longest_item_is_tried_as_it_is():
    for bench in (gpu(300), cpu(300)):
        assert bench.fit(budget=40, smallest=100).budget == 40
        assert bench.tried == [40]


@pytest.mark.parametrize("bench", [gpu(99), cpu(99), Bench(in_proportion, 99 * MIB)], ids=["gpu", "cpu", "cap"])
def test_a_longest_item_that_does_not_fit_is_an_error_that_says_what_to_do(bench):
    with pytest.raises(MemoryShortageError) as caught:
        bench.fit(reserve_bytes=3 * MIB)
    error = caught.value
    assert error.where == "pair p7"
    assert error.expected == (
        "at most 96 MiB for it: of 99 MiB in all, 0.0 MiB are in use "
        "and 3.0 MiB are kept for gradients and the optimizer"
    )
    assert error.found == ("it takes 100 MiB" if bench.hard == math.inf else "it runs out of memory")
    assert all(word in error.fix for word in ("gradient_checkpointing", "bfloat16", "tokenize.max_length"))


@pytest.mark.parametrize("bench", [gpu(99), cpu(99)], ids=["gpu", "cpu"])
def test_nothing_is_run_when_gradients_and_optimizer_alone_are_too_much(bench):
    with pytest.raises(MemoryShortageError) as caught:
        bench.fit(reserve_bytes=100 * MIB)
    assert caught.value.found == "nothing is left for it"
    assert "at most 0.0 MiB" in caught.value.expected
    assert bench.tried == []


@given(
    budget=st.integers(1, 100_000),
    smallest=st.integers(1, 3_000),
    room=st.integers(1, 100_000),
    slope=st.integers(0, 3),
    fixed=st.integers(0, 5_000),
    cautious=st.booleans(),
    hard=st.one_of(st.just(math.inf), st.integers(1, 100_000)),
)
def test_the_budget_chosen_is_the_largest_of_the_tried_ones_that_fits(
    budget, smallest, room, slope, fixed, cautious, hard
):
    bench = Bench(lambda tokens: fixed + slope * tokens, room, cautious=cautious, hard=hard)
    fitting = [
        rung for rung in memory._rungs(budget, smallest) if bench.cost(rung) <= room and bench.cost(rung) <= hard
    ]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory.gc, "collect", int)  # nothing to free here, and slow
            fit = bench.fit(budget, smallest)
    except MemoryShortageError:
        assert not fitting
        return
    assert min(smallest, budget) <= fit.budget <= budget
    assert fit.budget == max(rung for rung in bench.tried if rung in fitting)
    assert fit.peak_bytes == bench.cost(fit.budget) <= fit.room_bytes
    assert len(set(bench.tried)) == len(bench.tried)
    assert bool(fit.lowered) == (fit.budget < budget)
    if not cautious:
        assert fit.budget == max(fitting)
    elif hard == math.inf:
        assert all(bench.cost(rung) <= room for rung in bench.tried), "a killed process chooses no budget"


def test_the_budgets_tried_are_halves_down_to_the_longest_item():
    assert memory._rungs(1000, 120) == [120, 125, 250, 500, 1000]
    assert memory._rungs(1000, 125) == [125, 250, 500, 1000]
    assert memory._rungs(50, 125) == [50]


@pytest.mark.parametrize("bench", [Bench(in_proportion, 600 * MIB), cpu(600)], ids=["measured", "estimated"])
def test_a_lowered_budget_says_what_was_needed_and_what_was_free(bench):
    assert bench.fit(budget=16_384, smallest=512).lowered == (
        "the largest micro-batch needs about 16.0 GiB, 600 MiB are free for it: "
        "micro_batch_tokens lowered from 16,384 to 512"
    )


def test_a_lowered_budget_is_called_by_the_name_its_user_knows():
    bench = gpu(300)
    fit = fit_budget(bench.attempt, budget=1024, smallest=1, memory=bench, what="", setting="score_batch_tokens")
    assert fit.lowered.endswith("score_batch_tokens lowered from 1,024 to 256")


def test_checkpointing_is_not_advised_where_nothing_is_trained():
    with pytest.raises(MemoryShortageError) as caught:
        gpu(99).fit()
    assert caught.value.fix.startswith("set reference.dtype")


def test_a_lowered_budget_does_not_claim_to_need_less_than_was_free():
    bench = Bench(lambda budget: 20 * MIB, 600 * MIB, hard=math.inf)
    bench.attempt = lambda budget: (_ for _ in ()).throw(MemoryError()) if budget > 512 else None
    assert "runs out of memory, 600 MiB are free" in bench.fit().lowered


def failing_above(tokens: int, error: Callable[[], Exception]) -> Callable[[int], None]:
    def attempt(budget: int) -> None:
        if budget > tokens:
            raise error()

    return attempt


def cpu_allocator_fails() -> Exception:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        cpu_allocator_fails,
        MemoryError,
        lambda: torch.OutOfMemoryError("CUDA out of memory."),
        lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_way_to_run_out_of_memory_lowers_the_budget(error):
    attempt = failing_above(512, error)
    bench = Bench(in_proportion, 5000 * MIB)
    assert fit_budget(attempt, budget=1024, smallest=1, memory=bench, what="").budget == 512


def test_another_error_is_not_taken_for_a_shortage():
    attempt = failing_above(1, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit_budget(attempt, budget=1024, smallest=1, memory=Bench(in_proportion, 5000 * MIB), what="")


def test_the_tensors_of_a_failed_attempt_are_gone_before_the_next_one():
    held: list[weakref.ref] = []

    def attempt(budget: int) -> None:
        assert not [each for each in held if each() is not None]
        activations = torch.zeros(8)
        activations.kept_by_itself = activations  # a cycle: only the collector frees it
        held.append(weakref.ref(activations))
        if budget > 256:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    gc.disable()
    try:
        fit_budget(attempt, budget=1024, smallest=1, memory=Bench(in_proportion, 5000 * MIB), what="")
    finally:
        gc.enable()
    assert len(held) == 3


def taking(mebibytes: int) -> Callable[[], None]:
    def run() -> None:
        torch.ones(mebibytes * MIB // 4).sum()

    return run


def test_real_tensors_on_the_cpu_get_the_budget_they_have_room_for():
    host = HostMemory()
    taking(1)()
    fit = fit_budget(
        lambda budget: taking(budget)(),
        budget=800,
        smallest=50,
        memory=host,
        what="",
        limit_bytes=host.standing() + 300 * MIB,
    )
    assert fit.budget == 200
    assert 190 <= fit.peak_bytes / MIB <= 240


def adapted(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Frozen weights of 1,000 × 8 and a buffer of 7 numbers; trained ones of 10 × 8 and 8."""
    model = nn.Sequential(nn.Embedding(1_000, 8), nn.Linear(8, 10, bias=False), nn.Linear(10, 8, bias=False))
    model[0].requires_grad_(False)
    model[2].weight = nn.Parameter(torch.zeros(8, dtype=dtype))
    model.register_buffer("table", torch.zeros(7))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reserve_is_what_gradients_and_adamw_really_take(dtype):
    model = adapted(dtype)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for each in trained:
        each.grad = torch.ones_like(each)
    optimizer.step()
    kept = [each for state in optimizer.state.values() for each in state.values() if each.ndim]
    gradients = [each.grad for each in trained]
    assert training_reserve(model) == sum(each.nbytes for each in [*kept, *gradients])


def test_the_plan_adds_up_to_what_stands_what_comes_and_the_peak():
    model = adapted()
    fit = Fit(4_096, 4_096, 5_000, 5_000, 40_000, training_reserve(model), 90_000)
    plan = memory_plan(model, fit)
    assert (plan.frozen, plan.trained, plan.gradients, plan.moments) == (32_028, 352, 352, 704)
    assert plan.other == 40_000 - 32_028 - 352
    assert plan.total == fit.standing_bytes + fit.reserve_bytes + fit.peak_bytes


def test_the_plan_is_told_in_aligned_lines_without_the_empty_parts():
    plan = memory.MemoryPlan(2_254_857_830, 12 * MIB, 12 * MIB, 24 * MIB, 0, 3_650_722_201, 4_096, 22 * 1024 * MIB)
    assert plan.lines() == [
        "memory plan: 5.5 GiB of 22.0 GiB",
        "  frozen weights                   2.1 GiB",
        "  trained weights                   12 MiB",
        "  gradients                         12 MiB",
        "  AdamW's moments                   24 MiB",
        "  a micro-batch of 4,096 tokens    3.4 GiB",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 MiB"), (300_000, "0.3 MiB"), (12 * MIB, "12 MiB"), (2**30, "1.0 GiB"), (2**44, "16384.0 GiB")],
)
def test_sizes_are_told_in_mebibytes_and_gibibytes(count, text):
    assert size(count) == text


@given(st.integers(0, 2**50))
def test_a_size_is_off_by_a_twentieth_at_most_beyond_a_mebibyte(count):
    number, unit = re.fullmatch(r"([\d.]+) (MiB|GiB)", size(count)).groups()
    told = float(number) * {"MiB": MIB, "GiB": 2**30}[unit]
    assert abs(told - count) <= 0.05 * max(count, MIB)


def test_running_out_of_memory_midway_says_what_to_lower_and_other_errors_are_left_alone():
    with (
        pytest.raises(MemoryShortageError) as caught,
        shortage_told("step 9, pairs a, b", "lower runtime.micro_batch_tokens"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")
    assert caught.value.where == "step 9, pairs a, b"
    assert caught.value.fix == "lower runtime.micro_batch_tokens"
    assert caught.value.found == "CUDA out of memory. Tried to allocate 20.00 MiB."
    with pytest.raises(RuntimeError, match="shapes differ"), shortage_told("", ""):
        raise RuntimeError("shapes differ")

"""What a micro-batch costs in memory, tried before step 1, so that no run dies of its longest one at step 900."""

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from engine.errors import MemoryShortageError
from engine.models.device_memory import DeviceMemory

_RAN_OUT = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


@dataclass(frozen=True)
class Fit:
    """A token budget whose largest micro-batch has been run and fits.

    Attributes:
        budget: tokens a micro-batch may hold.
        wanted: tokens that were asked for; `budget` is at most that.
        peak_bytes: the most that the largest micro-batch under `budget` held, above what stood before.
        wanted_bytes: the same for `wanted`: measured if it was run, else an estimate.
        standing_bytes: what stood before.
        reserve_bytes: what is allocated later and was kept free.
        limit_bytes: what may be held in all.
        setting: the name under which the budget was asked for.
    """

    budget: int
    wanted: int
    peak_bytes: int
    wanted_bytes: int
    standing_bytes: int
    reserve_bytes: int
    limit_bytes: int
    setting: str = "micro_batch_tokens"

    @property
    def room_bytes(self) -> int:
        """What is left for a micro-batch."""
        return self.limit_bytes - self.standing_bytes - self.reserve_bytes

    @property
    def lowered(self) -> str:
        """Says why the budget is lower than the one asked for; empty when it is not."""
        if self.budget == self.wanted:
            return ""
        over = self.wanted_bytes > self.room_bytes
        need = f"needs about {size(self.wanted_bytes)}" if over else "runs out of memory"
        return (
            f"the largest micro-batch {need}, {size(self.room_bytes)} are free for it: "
            f"{self.setting} lowered from {self.wanted:,} to {self.budget:,}"
        )


def fit_budget(
    attempt: Callable[[int], None],
    *,
    budget: int,
    smallest: int,
    memory: DeviceMemory,
    what: str,
    limit_bytes: int = 0,
    reserve_bytes: int = 0,
    setting: str = "micro_batch_tokens",
) -> Fit:
    """The largest of `budget`, its halves and `smallest` whose most expensive micro-batch fits, found by running it.

    Where taking too much would end the process, the smallest goes first, and a larger one is run only when those
    before it let expect that it fits; elsewhere the largest goes first, and what runs out of memory is tried smaller.

    Args:
        attempt: runs the most expensive micro-batch that a plan with the given budget holds, forward and backward,
            and leaves nothing allocated; a gradient it leaves counts to its peak.
        budget: tokens wanted, at least 1.
        smallest: tokens of the longest single item, at least 1; a budget below it changes nothing, so none is tried.
        what: names the longest item in an error, "pair 4f1c (1,024 tokens)".
        limit_bytes: what may be held in all, at most what the device has; 0: what the device has.
        reserve_bytes: what will be allocated later: see `training_reserve`. 0: nothing is trained.
        setting: what the user calls `budget`.

    Raises:
        MemoryShortageError: the longest item alone does not fit.
    """
    standing, limit = memory.standing(), memory.limit()
    limit = min(limit_bytes or limit, limit)
    room = limit - standing - reserve_bytes
    rungs, peaks = _rungs(budget, smallest), dict[int, float]()
    while (rung := _next_rung(rungs, peaks, room, cautious=memory.cautious)) is not None:
        peaks[rung] = _peak(memory, attempt, rung, standing)
    best = max((rung for rung, peak in peaks.items() if peak <= room), default=None)
    if best is None:
        raise _shortage(peaks.get(rungs[0]), standing, reserve_bytes, limit, what, capped=limit == limit_bytes)
    wanted_bytes = math.ceil(_estimate(peaks, budget))
    return Fit(best, budget, int(peaks[best]), wanted_bytes, standing, reserve_bytes, limit, setting)


def _rungs(budget: int, smallest: int) -> list[int]:
    """The budgets worth a try, rising."""
    rungs = [budget]
    while rungs[0] > smallest:
        rungs.insert(0, max(rungs[0] // 2, smallest))
    return rungs


def _next_rung(rungs: Sequence[int], peaks: Mapping[int, float], room: int, *, cautious: bool) -> int | None:
    """The largest budget that is not decided yet and, for the cautious, is expected to fit."""
    if not peaks:
        return None if room <= 0 else rungs[0 if cautious else -1]
    fits = max((rung for rung, peak in peaks.items() if peak <= room), default=0)
    too_big = min((rung for rung, peak in peaks.items() if peak > room), default=math.inf)
    undecided = [rung for rung in rungs if fits < rung < too_big]
    return max((rung for rung in undecided if not cautious or _estimate(peaks, rung) <= room), default=None)


def _estimate(peaks: Mapping[int, float], budget: int) -> float:
    """The peak of a budget from those of smaller ones, in bytes; the measured one where there is one.

    One rung further it lies on the line through the last two. Further than that it grows in proportion, which is too
    much where part of a peak does not grow at all: a line through two small peaks may be all noise.
    """
    known = sorted(rung for rung, peak in peaks.items() if rung <= budget and peak < math.inf)
    last = known[-1]
    if len(known) == 1 or budget > 2 * last + 1:
        return peaks[last] * budget / last
    slope = (peaks[last] - peaks[known[-2]]) / (last - known[-2])
    return peaks[last] + max(slope, 0.0) * (budget - last)


def _peak(memory: DeviceMemory, attempt: Callable[[int], None], budget: int, standing: int) -> float:
    """Bytes above what stood before; infinite when they ran out."""
    try:
        return max(0, memory.peak_of(lambda: attempt(budget)) - standing)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
    gc.collect()  # only now: the error's frames held the tensors
    return math.inf


def ran_out(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _RAN_OUT)


@contextmanager
def shortage_told(where: str, fix: str) -> Iterator[None]:
    """Turns running out of memory in the midst of work into an error that says what to do.

    Raises:
        MemoryShortageError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise MemoryShortageError(
            "memory ran out",
            found=str(error).strip().partition("\n")[0],
            where=where,
            fix=fix,
        ) from None


def _shortage(
    peak: float | None, standing: int, reserve: int, limit: int, what: str, *, capped: bool
) -> MemoryShortageError:
    room = limit - standing - reserve
    takes = f"it takes {size(math.ceil(peak))}" if peak is not None and peak < math.inf else "it runs out of memory"
    return MemoryShortageError(
        "the longest item does not fit into memory, even alone in its micro-batch",
        expected=f"at most {size(max(room, 0))} for it: of {size(limit)} in all, {size(standing)} are in use"
        + (f" and {size(reserve)} are kept for gradients and the optimizer" if reserve else ""),
        found="nothing is left for it" if room <= 0 else takes,
        where=what,
        fix=("raise runtime.memory_limit_gib, or " if capped else "")
        + ("set runtime.gradient_checkpointing = true, " if reserve else "set ")
        + 'reference.dtype = "bfloat16", or a smaller tokenize.max_length',
    )


def training_reserve(model: torch.nn.Module) -> int:
    """Bytes that gradients and AdamW's two moments will take, both in the dtype of the parameters they belong to."""
    return 3 * _bytes_of(parameter for parameter in model.parameters() if parameter.requires_grad)


def _bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


@dataclass(frozen=True)
class MemoryPlan:
    """Where the memory of a training run goes, in bytes.

    Attributes:
        frozen, trained: weights; buffers are among the frozen.
        gradients, moments: of the trained weights.
        other: what else stood before the first micro-batch: libraries, data.
        micro_batch: activations and head of the largest micro-batch.
        tokens: of that micro-batch, at most.
        limit: what may be held in all.
    """

    frozen: int
    trained: int
    gradients: int
    moments: int
    other: int
    micro_batch: int
    tokens: int
    limit: int

    @property
    def total(self) -> int:
        """What is held when the largest micro-batch runs."""
        return self.frozen + self.trained + self.gradients + self.moments + self.other + self.micro_batch

    def lines(self) -> list[str]:
        """The plan for a log: a headline, then a line for each part that is not empty, sizes below each other."""
        parts = {
            "frozen weights": self.frozen,
            "trained weights": self.trained,
            "gradients": self.gradients,
            "AdamW's moments": self.moments,
            "libraries and data": self.other,
            f"a micro-batch of {self.tokens:,} tokens": self.micro_batch,
        }
        width = max(map(len, parts))
        shown = [f"  {name:<{width}}  {size(count):>9}" for name, count in parts.items() if count]
        return [f"memory plan: {size(self.total)} of {size(self.limit)}", *shown]


def memory_plan(model: torch.nn.Module, fit: Fit) -> MemoryPlan:
    """The plan of a run that trains the parameters of `model` with `requires_grad` by AdamW under `fit`'s budget."""
    trained = _bytes_of(each for each in model.parameters() if each.requires_grad)
    frozen = _bytes_of([*(each for each in model.parameters() if not each.requires_grad), *model.buffers()])
    other = max(fit.standing_bytes - frozen - trained, 0)
    return MemoryPlan(frozen, trained, trained, 2 * trained, other, fit.peak_bytes, fit.budget, fit.limit_bytes)


def size(count: int) -> str:
    """Bytes for people: "3.4 GiB", "12 MiB", "0.3 MiB"."""
    mebi = count / 2**20
    if mebi >= 1024:
        return f"{mebi / 1024:.1f} GiB"
    return f"{mebi:.0f} MiB" if mebi >= 10 else f"{mebi:.1f} MiB"

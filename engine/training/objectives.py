"""The two things this project minimises: the SFT loss over responses, and preference losses over pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.dpo.losses import PairLogps, StepCounts, WeightedSum, derivative
from engine.dpo.rewards import summed_log_ratios_per_token, summed_metrics
from engine.models.forward import row_logps
from engine.models.layouts import Group, size
from engine.models.passes import Passes
from engine.models.scoring import policy_logps
from engine.preferences.pairs import TokenPair, TokenRow
from engine.training.loop import Contribution


@dataclass
class SftObjective:
    """Mean negative log-probability over the scored tokens of the step."""

    examples: Sequence[TokenRow]
    passes: Passes

    def micro_batches(self, rows: Sequence[int]) -> list[list[int]]:
        """See `Objective`."""
        return self.passes.split({row: (self.examples[row],) for row in rows})

    def contributions(self, model: torch.nn.Module, rows: Sequence[int]) -> Iterator[Contribution]:
        """See `Objective`."""
        tokens = sum(self.examples[row].scored_tokens for row in rows)
        for part in self.micro_batches(rows):
            groups = [(self.examples[row],) for row in part]
            loss = -row_logps(model, groups, self.passes.forward, self.passes.pad_id).sums().sum() / tokens
            yield Contribution(part, float(loss.detach()), loss)

    def describe(self, rows: Sequence[int]) -> str:
        """See `Objective`."""
        return f"sft example{'s' * (len(rows) > 1)} " + ", ".join(str(row) for row in rows)

    def tokens(self, rows: Sequence[int]) -> int:
        """See `Objective`."""
        return _tokens([(self.examples[row],) for row in rows], self.passes)


@dataclass
class PreferenceObjective:
    """A weighted list of losses over pairs and their stored reference scores.

    What the loss asks of the logps is done here: sums weighted as LD-DPO has them, a WPO weight for every pair.

    Attributes:
        ref: (pairs, 2) float64, chosen and rejected reference logps of the same pairs, weighted where the loss has an
            `ld_alpha`; zeros where it takes no reference.
        whole_ref: (pairs, 2) the same without weights, where `ref` has them.
    """

    pairs: Sequence[TokenPair]
    ref: Tensor
    loss: WeightedSum
    beta: float
    passes: Passes
    whole_ref: Tensor | None = None

    def micro_batches(self, rows: Sequence[int]) -> list[list[int]]:
        """See `Objective`."""
        return self.passes.split({row: self.pairs[row].rows for row in rows})

    def logps(self, model: torch.nn.Module, rows: Sequence[int]) -> PairLogps:
        """Logps of these rows under the policy, with gradient, beside their reference logps."""
        return policy_logps(
            model,
            [self.pairs[row] for row in rows],
            self.ref[list(rows)],
            self.passes,
            whole_ref=None if self.whole_ref is None else self.whole_ref[list(rows)],
            ld_alpha=self.loss.ld_alpha,
            use_weighting=self.loss.use_weighting,
        )

    def all_logps(self, model: torch.nn.Module, rows: Sequence[int]) -> PairLogps:
        """The same without gradient, in the micro-batches of training but in the order of `rows`."""
        parts = self.micro_batches(rows)
        with torch.no_grad():
            found = [self.logps(model, part) for part in parts]
        place = {row: at for at, row in enumerate(row for part in parts for row in part)}
        return PairLogps.joined(found).at([place[row] for row in rows])

    def counts(self, rows: Sequence[int]) -> StepCounts:
        """What a step of these rows holds."""
        return StepCounts(len(rows), sum(self.pairs[row].chosen.scored_tokens for row in rows))

    def contributions(self, model: torch.nn.Module, rows: Sequence[int]) -> Iterator[Contribution]:
        """See `Objective`; the metrics are those of engine/dpo/rewards.py, as means over the step's pairs.

        Under LD-DPO rewards are of the weighted sums, logps and log-ratios of the plain ones. Where there is no
        reference nothing is said of log-ratios.

        A loss that couples pairs is differentiated at the logps of the whole step, which takes a pass of its own where
        the step is more than one micro-batch. It sees the same draws of a dropout as the pass with gradient.
        """
        parts, step = self.micro_batches(rows), self.counts(rows)
        whole, blamed = None, None
        if self.loss.coupled and len(parts) > 1:
            with torch.random.fork_rng():
                logps = self.all_logps(model, rows)
            whole, blamed = derivative(self.loss, logps, step), _broken(rows, logps) or rows
        place = {row: at for at, row in enumerate(rows)}
        for number, part in enumerate(parts):
            logps = self.logps(model, part)
            slope = whole.at([place[row] for row in part]) if whole else derivative(self.loss, logps, step)
            metrics = {name: value / step.pairs for name, value in self._summed(logps).items()}
            loss = slope.loss if whole is None or number == 0 else 0.0
            yield Contribution(blamed or _broken(part, logps) or part, loss, slope.surrogate(logps), metrics)

    def _summed(self, logps: PairLogps) -> dict[str, float]:
        earned = summed_metrics(logps, self.beta, reference_free=self.loss.reference_free)
        return earned if self.loss.reference_free else earned | summed_log_ratios_per_token(logps)

    def describe(self, rows: Sequence[int]) -> str:
        """See `Objective`."""
        return f"pair{'s' * (len(rows) > 1)} " + ", ".join(self.pairs[row].pair_id for row in rows)

    def tokens(self, rows: Sequence[int]) -> int:
        """See `Objective`; once each, also where a loss that couples pairs sees them twice."""
        return _tokens([self.pairs[row].rows for row in rows], self.passes)


def _tokens(groups: Sequence[Group], passes: Passes) -> int:
    """As the layout has them: what the rows of a group share counts once where it is computed once."""
    layout = passes.forward.layout
    return sum(size(group, "single" if layout == "padded" else layout) for group in groups)


def _broken(rows: Sequence[int], logps: PairLogps) -> list[int]:
    """The rows whose margin is NaN or infinite."""
    return [row for row, sound in zip(rows, logps.logratio_margin.isfinite().tolist(), strict=True) if not sound]

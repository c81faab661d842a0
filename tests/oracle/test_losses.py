"""Every loss against TRL's own code for it, fed with the same log-probabilities of tokens: values, gradients, rewards.

TRL runs without a model: its loss is called on a stand-in for the trainer whose models return given numbers. In float64
what is compared is the formula; in float32, TRL's own precision, the tolerance is 1e-5 of max(1, β·|logps|, |loss|).
"""

from collections import defaultdict
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.dpo.loss_table import build
from engine.dpo.losses import Loss, PairLogps, StepCounts, WeightedSum, derivative
from engine.dpo.reference_free import Sft, mean_logps
from engine.dpo.rewards import rewards, summed_metrics

pytestmark = pytest.mark.slow

PAIRS, LENGTH, PROMPT = 9, 48, 5
DIVERGENT = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
PLAIN = ("nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down")
SMOOTHED = {"exo_pair": (1e-3, 0.2), "robust": (0.0, 0.2), "aot": (0.0, 0.2), "aot_unpaired": (0.0, 0.2)}
BETAS = (0.01, 0.1, 0.5)


@dataclass
class Tokens:
    """What a policy and its reference make of padded rows, (2·PAIRS, LENGTH − 1): chosen first, zero where unscored."""

    mask: Tensor
    policy: Tensor
    ref: Tensor
    squares: Tensor

    def to(self, dtype: torch.dtype) -> "Tokens":
        return Tokens(self.mask, self.policy.to(dtype), self.ref.to(dtype), self.squares.to(dtype))


@pytest.fixture
def tokens() -> Tokens:
    draw = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, LENGTH - PROMPT, (2 * PAIRS, 1), generator=draw)
    places = torch.arange(1, LENGTH)
    mask = (places >= PROMPT) & (places < PROMPT + lengths)
    ref = -2 * torch.rand(mask.shape, generator=draw).double()
    policy = (ref + 0.2 * torch.randn(mask.shape, generator=draw)).clamp(max=-1e-3)
    squares = -torch.rand(mask.shape, generator=draw).double()
    # What float32 holds exactly, so that both sides start from the same numbers.
    return Tokens(mask, *((column * mask).float().double() for column in (policy, ref, squares)))


@dataclass(frozen=True)
class Asked:
    """A loss in TRL's words."""

    names: tuple[str, ...]
    weights: tuple[float, ...] = ()
    beta: float = 0.1
    label_smoothing: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    def spec(self) -> dict[str, Any]:
        terms = []
        for name, weight in zip(self.names, self.weights or [1.0] * len(self.names), strict=True):
            smoothing = 0.0 if name == "sigmoid" else self.label_smoothing  # which TRL ignores there
            terms.append({"name": name, "weight": weight, "label_smoothing": smoothing, "discopop_tau": 0.05})
        return {"beta": self.beta, "loss": terms, **self.options}


@dataclass
class Found:
    loss: float
    slopes: Tensor
    rewards: dict[str, float]


def theirs(asked: Asked, tokens: Tokens, dtype: torch.dtype) -> Found:
    from trl import DPOTrainer

    given = tokens.to(dtype)
    policy = given.policy.clone().requires_grad_()
    trainer = _trainer(asked, given)
    shown = torch.nn.functional.pad(given.mask, (1, 0)).long()
    inputs = {"input_ids": shown, "attention_mask": torch.ones_like(shown), "completion_mask": shown}
    loss = DPOTrainer._compute_loss(trainer, lambda **_: _outputs(policy, given), inputs, False)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return Found(loss.item(), policy.grad * given.mask, metrics)


class _Untouched(torch.nn.Module):
    """The model that TRL asks for its mode only; the numbers come from functions beside it."""

    is_gradient_checkpointing = False


def _trainer(asked: Asked, given: Tokens) -> SimpleNamespace:
    known = {"ld_alpha": None, "use_weighting": False, "f_divergence_type": "reverse_kl"}
    return SimpleNamespace(
        **known | {"f_alpha_divergence_coef": 0.5} | asked.options,
        model=_Untouched(),
        ref_model=lambda **_: _outputs(given.ref, given),
        args=SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        precompute_ref_logps=False,
        aux_loss_enabled=False,
        beta=asked.beta,
        loss_types=list(asked.names),
        loss_weights=list(asked.weights) or [1.0] * len(asked.names),
        label_smoothing=asked.label_smoothing,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )


def _outputs(logps: Tensor, given: Tokens) -> SimpleNamespace:
    nothing = torch.zeros_like(given.policy.detach())
    return SimpleNamespace(
        log_probs=logps, log_sum_sq_probs=given.squares, entropy=nothing, mean_logits=nothing, is_top1=given.mask
    )


def ours(asked: Asked, tokens: Tokens) -> Found:
    spec = asked.spec()
    loss, policy = build(spec), tokens.policy.clone().requires_grad_()
    logps = _pairs(tokens, policy, loss)
    step = StepCounts(PAIRS, int(logps.chosen_tokens.sum()))
    slope = derivative(loss, logps, step)
    slope.surrogate(logps).backward()
    means = {name: value / PAIRS for name, value in summed_metrics(logps, asked.beta).items()}
    return Found(slope.loss, policy.grad * tokens.mask, means)


def _pairs(tokens: Tokens, policy: Tensor, loss: WeightedSum) -> PairLogps:
    lengths = tokens.mask.sum(1)
    chosen_tokens, rejected_tokens = lengths.chunk(2)
    shared = torch.minimum(chosen_tokens, rejected_tokens).repeat(2).unsqueeze(1)
    tail = tokens.mask.cumsum(1) > shared
    weight = torch.where(tail, 1.0 if loss.ld_alpha is None else loss.ld_alpha, 1.0).double()
    sums = [(column * weight).sum(1).chunk(2) for column in (policy, tokens.ref)]
    likely = ((policy.detach() - tokens.squares) * tokens.mask).sum(1).div(lengths).exp().chunk(2)
    return PairLogps(
        *(side for both in sums for side in both),
        chosen_tokens,
        rejected_tokens,
        whole_chosen=None if loss.ld_alpha is None else policy.sum(1).chunk(2)[0],
        weights=likely[0] * likely[1] if loss.use_weighting else None,
    )


def assert_same(asked: Asked, tokens: Tokens) -> None:
    """Holds ours against theirs; under LD-DPO TRL reports the weighted sums as `logps`, which here are plain ones."""
    alpha = asked.options.get("f_divergence_type") == "alpha_divergence"  # which TRL has in float32 alone
    here, size = ours(asked, tokens), float(tokens.policy.sum(1).abs().max())
    for dtype, bound in [(torch.float32, 1e-5), *([] if alpha else [(torch.float64, 1e-7)])]:
        there = theirs(asked, tokens, dtype)
        scale = max(1.0, asked.beta * size, abs(there.loss))
        assert abs(here.loss - there.loss) <= bound * scale
        assert float((here.slopes - there.slopes).abs().max()) <= bound * scale
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
            assert abs(here.rewards[name] - there.rewards[name]) <= bound * scale
        for name in ("logps/chosen", "logps/rejected") if asked.options.get("ld_alpha") is None else ():
            assert abs(here.rewards[name] - there.rewards[name]) <= bound * size
    assert here.slopes.abs().max() > 0


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("name", [*DIVERGENT, *PLAIN])
def test_every_loss_has_the_value_the_slopes_and_the_rewards_of_trl(tokens: Tokens, name: str, beta: float) -> None:
    for smoothing in SMOOTHED.get(name, (0.0,)):
        assert_same(Asked((name,), beta=beta, label_smoothing=smoothing), tokens)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(
    ("kind", "coefficient"),
    [("forward_kl", 0.5), ("js_divergence", 0.5), *(("alpha_divergence", value) for value in (0.0, 0.5, 1.0, 1.5))],
)
@pytest.mark.parametrize("name", DIVERGENT)
def test_every_divergence_is_that_of_trl(tokens: Tokens, name: str, kind: str, coefficient: float, beta: float) -> None:
    options = {"f_divergence_type": kind, "f_alpha_divergence_coef": coefficient}
    assert_same(Asked((name,), beta=beta, label_smoothing=SMOOTHED.get(name, (0.0,))[-1], options=options), tokens)


@pytest.mark.parametrize("nats", [20.0, 38.0])
def test_a_square_is_that_of_trl_as_far_out_as_its_bound(tokens: Tokens, nats: float) -> None:
    tokens.policy -= nats * tokens.mask / tokens.mask.sum(1, keepdim=True)
    assert_same(Asked(("ipo",), options={"f_divergence_type": "forward_kl"}), tokens)


@pytest.mark.parametrize("name", [*DIVERGENT, *PLAIN])
@pytest.mark.parametrize("ld_alpha", [0.0, 0.5, 1.0])
def test_tokens_beyond_the_shorter_response_weigh_what_they_do_in_trl(
    tokens: Tokens, name: str, ld_alpha: float
) -> None:
    asked = Asked((name,), label_smoothing=SMOOTHED.get(name, (0.0,))[-1], options={"ld_alpha": ld_alpha})
    assert_same(asked, tokens)


@pytest.fixture
def weighing_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies for TRL 1.16.0, whose `*=` with the weights fails on what it makes of hinge and sft.

    Of the first autograd needs the value it overwrites; of the second all pairs have one place in memory.
    """
    expand = torch.Tensor.expand
    monkeypatch.setattr(torch, "relu", lambda values: values.clamp(min=0))
    monkeypatch.setattr(torch.Tensor, "expand", lambda values, *sizes: expand(values, *sizes).clone())


@pytest.mark.parametrize("name", ["hinge", "sft"])
def test_trl_itself_cannot_weigh_the_pairs_of_two_losses(tokens: Tokens, name: str) -> None:
    with pytest.raises(RuntimeError, match=r"inplace operation|single memory location"):
        theirs(Asked((name,), options={"use_weighting": True}), tokens, torch.float32)


@pytest.mark.usefixtures("weighing_in_place")
@pytest.mark.parametrize("ld_alpha", [None, 0.5])
@pytest.mark.parametrize("name", [name for name in (*DIVERGENT, *PLAIN) if not name.startswith("aot")])
def test_pairs_weigh_what_they_do_in_trl(tokens: Tokens, name: str, ld_alpha: float | None) -> None:
    options = {"use_weighting": True, "ld_alpha": ld_alpha}
    assert_same(Asked((name,), label_smoothing=SMOOTHED.get(name, (0.0,))[-1], options=options), tokens)


MIXES = [
    Asked(("sigmoid", "sft"), (1.0, 0.5)),
    Asked(("sigmoid", "bco_pair", "sft"), (0.8, 0.2, 1.0)),
    Asked((*DIVERGENT, *PLAIN), tuple(0.1 * (1 + at) for at in range(15)), label_smoothing=0.1),
    Asked(DIVERGENT, label_smoothing=0.1, options={"f_divergence_type": "js_divergence", "ld_alpha": 0.3}),
    Asked(("sigmoid", "apo_zero", "sft"), (1.0, 0.3, 0.7), options={"use_weighting": True, "ld_alpha": 0.6}),
]


@pytest.mark.usefixtures("weighing_in_place")
@pytest.mark.parametrize("asked", MIXES, ids=lambda asked: "+".join(asked.names)[:40])
def test_weighted_mixes_are_those_of_trl(tokens: Tokens, asked: Asked) -> None:
    assert_same(asked, tokens)


def _reference_free(tokens: Tokens, loss: Loss) -> tuple[PairLogps, StepCounts, Tensor, Tensor]:
    """The pairs of the tokens, their step, and the slopes of `loss` there."""
    logps = _pairs(tokens, tokens.policy, WeightedSum([(1.0, loss)]))
    step = StepCounts(PAIRS, int(logps.chosen_tokens.sum()))
    slope = derivative(loss, logps, step)
    return logps, step, slope.chosen * logps.chosen_tokens, slope.rejected * logps.rejected_tokens


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(("beta", "gamma"), [(0.1, 0.5), (2.0, 1.6), (10.0, 3.0)])
def test_simpo_is_that_of_trls_cpo_trainer(tokens: Tokens, beta: float, gamma: float, smoothing: float) -> None:
    from trl.experimental.cpo import CPOTrainer

    term = {"name": "simpo", "weight": 1.0, "simpo_gamma": gamma, "label_smoothing": smoothing}
    loss = build({"beta": beta, "loss": [term]})
    logps, step, *slopes = _reference_free(tokens, loss)
    means = [side.clone().requires_grad_() for side in mean_logps(logps)]
    there, chosen, rejected = CPOTrainer.cpo_loss(_cpo(beta, "simpo", gamma, smoothing), *means)
    there.mean().backward()
    earned = rewards(logps, beta, reference_free=True)
    assert float(loss(logps, step)) == pytest.approx(there.mean().item(), rel=1e-9)
    for ours, theirs in zip(slopes, means, strict=True):
        assert torch.allclose(ours, theirs.grad, rtol=1e-9)
    assert torch.allclose(earned.chosen, chosen)
    assert torch.allclose(earned.rejected, rejected)


@pytest.mark.parametrize("beta", BETAS)
def test_orpo_is_the_sft_loss_and_the_odds_ratio_loss_of_trls_trainer(tokens: Tokens, beta: float) -> None:
    from trl.experimental.orpo import ORPOTrainer

    loss = build({"beta": beta, "loss": [{"name": "orpo", "weight": 1.0}]})
    logps, step, *slopes = _reference_free(tokens, loss)
    means = [side.clone().requires_grad_() for side in mean_logps(logps)]
    trainer = SimpleNamespace(beta=beta, accelerator=SimpleNamespace(device="cpu"))
    gains, chosen, rejected, *_ = ORPOTrainer.odds_ratio_loss(trainer, *means)
    (-gains.mean()).backward()  # TRL takes it from the SFT loss
    earned = rewards(logps, beta, reference_free=True)
    assert float(loss(logps, step) - Sft()(logps, step)) == pytest.approx(-gains.mean().item(), abs=1e-5)
    means[0].grad -= logps.chosen_tokens / step.chosen_tokens
    for ours, theirs in zip(slopes, means, strict=True):
        assert torch.allclose(ours, theirs.grad, atol=1e-5)
    assert torch.allclose(earned.chosen, chosen.double(), atol=1e-5)
    assert torch.allclose(earned.rejected, rejected.double(), atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_label_smoothing_of_sigmoid_is_the_conservative_loss_that_trl_has_in_its_cpo_trainer(
    tokens: Tokens, smoothing: float
) -> None:
    from trl.experimental.cpo import CPOTrainer

    term = {"name": "sigmoid", "weight": 1.0, "label_smoothing": smoothing}
    loss = build({"beta": 0.3, "loss": [term]})
    logps, step, *_ = _reference_free(tokens, loss)
    trainer = _cpo(0.3, "sigmoid", 0.0, smoothing)
    there, *_ = CPOTrainer.cpo_loss(trainer, logps.chosen_logratio, logps.rejected_logratio)
    assert float(loss(logps, step)) == pytest.approx(there.mean().item(), rel=1e-12)


def _cpo(beta: float, kind: str, gamma: float, smoothing: float) -> SimpleNamespace:
    return SimpleNamespace(
        alpha=0.0,
        beta=beta,
        loss_type=kind,
        simpo_gamma=gamma,
        label_smoothing=smoothing,
        accelerator=SimpleNamespace(device="cpu"),
    )

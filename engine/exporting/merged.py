"""The merged model: the adapter added into the weights it belongs on, and held against both of them apart."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError, NumericsError
from engine.exporting.adapter import save_tokenizer
from engine.exporting.endings import ending
from engine.exporting.finished import Finished
from engine.preferences.pairs import TokenPair, load_pairs
from engine.preferences.schema import EVALUATED, read_table
from engine.preferences.templates import Template

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from engine.evaluation.subject import Subject

PAIRS = 32  # that the merged model is held against the adapter on


@dataclass(frozen=True)
class Check:
    """How far the merged model, read back from its files, is from the adapter on its base.

    Attributes:
        pairs: how many held-out pairs were scored under both.
        difference: the largest difference of a side's logps or of their margin, in nats.
        tolerance: the smallest that a pair was held to, in nats.
        judged: the largest difference from the scores that the model was judged by; None where they are gone.
    """

    pairs: int
    difference: float
    tolerance: float
    judged: float | None


def write_merged(finished: Finished, folder: Path, count: int = PAIRS) -> tuple[Check, Template]:
    """Writes the merged model in the adapter's own dtype, with its tokenizer, and reads it back for the check.

    Weights that were quantised for the training are taken in full: what an adapter learnt is rounded away where it is
    merged into quantised ones.

    Args:
        count: held-out pairs to score; all where there are fewer.

    Raises:
        ModelError: it cannot be loaded, or its base is stored in quantised weights.
        NumericsError: the merged model gives other log-probabilities than the adapter on its base.
        MemoryShortageError: it does not fit.
        TransientError: the Hub did not answer.
    """
    pairs = _pairs(finished, count)
    subject = finished.open(quantization="none")
    apart = subject.scores(finished.context(), pairs)
    form, device = subject.template, subject.device
    whole = merged_model(finished, subject)
    whole.generation_config = ending(whole.generation_config, form)
    whole.save_pretrained(str(folder))
    save_tokenizer(form, folder)
    del subject, whole  # before the same weights are read again
    gc.collect()
    merged = _scores_of(folder, finished, pairs, form, device)
    return _checked(finished, pairs, apart, merged), form


def merged_model(finished: Finished, subject: "Subject") -> "PreTrainedModel":
    """The adapter added into the weights of the model that was opened, which is changed by it; nothing is compared.

    Args:
        subject: opened without quantisation.

    Raises:
        ModelError: its base is stored in quantised weights.
    """
    if getattr(subject.model.get_base_model(), "quantization_method", None) is not None:
        raise ModelError(
            "the base is stored in quantised weights, and an adapter cannot be merged into such",
            where=finished.model.policy or finished.model.name,
            fix="take the adapter alone, without merging",
        )
    whole: PreTrainedModel = subject.model.merge_and_unload(safe_merge=True)
    return whole


def _pairs(finished: Finished, count: int) -> list[TokenPair]:
    """The longest held-out pairs, and others from all over; of the training's where none was held out."""
    chosen = finished.inputs["subsample"]
    pairs = load_pairs(chosen.file("eval.parquet")) or load_pairs(chosen.file("train.parquet"))
    longest = sorted(pairs, key=lambda pair: -pair.length)[: count // 4]
    rest = [pair for pair in pairs if pair not in longest]
    step = max(1, len(rest) // max(1, count - len(longest)))
    return [*longest, *rest[::step]][:count]


def _scores_of(folder: Path, finished: Finished, pairs: Sequence[TokenPair], form: Template, device: Any) -> "Tensor":
    """(pairs, 2) float64: logps under the model in a folder."""
    import torch

    from engine.fitting import scoring_passes
    from engine.models.devices import placed
    from engine.models.loading import Place, load_model
    from engine.models.scoring import score_pairs

    how, source = finished.how, finished.model
    allowed = bool(source.allow_code) and source.allow_code in (source.name, source.policy)
    place = Place(str(folder), allow_code=allowed)
    model = placed(load_model(place, dtype=how["dtype"], attention=how["attention"]), device)
    passes = scoring_passes(finished.context(), model, pairs, form.tokenizer.pad_token_id or 0)
    scores = score_pairs(model, pairs, passes)
    return torch.tensor([(each.chosen_logps, each.rejected_logps) for each in scores], dtype=torch.float64)


def _checked(finished: Finished, pairs: Sequence[TokenPair], apart: "Tensor", merged: "Tensor") -> Check:
    from engine.training.proof import tolerance

    dtype = finished.how["dtype"]
    allowed = [tolerance(pair, scores, dtype) for pair, scores in zip(pairs, apart.tolist(), strict=True)]
    found = _gaps(merged - apart)
    off = [place for place, gap in enumerate(found) if not gap <= allowed[place]]  # also when it is NaN
    if off:
        worst = max(off, key=lambda place: found[place] / allowed[place])
        raise NumericsError(
            "the merged model is not the adapter on its base, so nothing was exported",
            expected=f"a difference of at most {allowed[worst]:.2g} nats",
            found=f"{found[worst]:.4g} nats; {len(off)} of the {len(pairs)} pairs tried differ",
            where=f"pair {pairs[worst].pair_id}, {finished.name}",
            fix="export it without --merge and load the adapter on its base: that is the model that was judged"
            + ("" if dtype == "float32" else f"; {dtype} may have too few digits for what the adapter adds"),
        )
    return Check(len(pairs), max(found), min(allowed), _from_judged(finished, pairs, merged))


def _gaps(difference: "Tensor") -> list[float]:
    import torch

    sides = torch.cat([difference, (difference[:, 0] - difference[:, 1])[:, None]], dim=1)
    gaps: list[float] = sides.abs().amax(1).tolist()
    return gaps


def _from_judged(finished: Finished, pairs: Sequence[TokenPair], merged: "Tensor") -> float | None:
    """The largest difference from what `evaluate` scored; None where that is gone or has none of these pairs."""
    import torch

    names = ["pair_id", "policy_chosen_logps", "policy_rejected_logps"]
    if "evaluate" not in finished.lent:
        return None
    rows = read_table(finished.lent["evaluate"].file("pairs.parquet"), EVALUATED, names).to_pylist()
    judged = {row["pair_id"]: [row[name] for name in names[1:]] for row in rows}
    places = [place for place, pair in enumerate(pairs) if pair.pair_id in judged]
    if not places:
        return None
    wanted = torch.tensor([judged[pairs[place].pair_id] for place in places], dtype=torch.float64)
    return max(_gaps(merged[places] - wanted))

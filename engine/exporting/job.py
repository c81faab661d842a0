"""One export from its wish to its folder: what is checked first, what is written, and what is told of it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from engine.exporting.adapter import Belonging, belonging, belonging_on_base, write_adapter
from engine.exporting.card import CARD, Told, write_card
from engine.exporting.chat_template import chat_template_of
from engine.exporting.earlier import note
from engine.exporting.finished import Finished
from engine.exporting.folder import check_place, size_of, taking_place
from engine.exporting.merged import PAIRS, Check, write_merged
from engine.exporting.publishing import Publisher
from engine.exporting.scores import Kind, check_scored, write_scores_for_trl
from engine.preferences.templates import Template
from engine.promotion.card_data import is_on_the_hub

SCORES = "scores"
_log = logging.getLogger("dpo.export")


@dataclass(frozen=True)
class Wish:
    """What is to be exported, and where to.

    Attributes:
        merged: the whole model in place of the adapter.
        on_base: the adapter for the model below the SFT's, where there is one.
        scores: also the reference scores, as this kind of file.
        push: a repository of the Hub; empty for none.
        pairs: held-out pairs that a merged model is checked on.
        force: replace an earlier export.
    """

    out: Path
    merged: bool = False
    on_base: bool = False
    scores: Kind | None = None
    push: str = ""
    public: bool = False
    pairs: int = PAIRS
    force: bool = False


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        base: what the adapter belongs on; None for a merged model.
        check: of a merged model.
        scores: rows by file, where scores were asked for.
        notes: sentences for whoever uses it.
        address: on the Hub, where it was pushed.
    """

    path: Path
    name: str
    verdict: str
    bytes: int
    base: Belonging | None
    check: Check | None
    scores: dict[str, int]
    notes: tuple[str, ...]
    address: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "path": str(self.path),
            "model": self.name,
            "verdict": self.verdict or None,
            "kind": "adapter" if self.base else "merged",
            "bytes": self.bytes,
            "base": vars(self.base) if self.base else None,
            "check": vars(self.check) if self.check else None,
            "scores": self.scores,
            "notes": list(self.notes),
            "address": self.address or None,
        }


def check_wish(wish: Wish) -> Publisher | None:
    """All that can be refused before a model is looked for; who pushes, if it is to be pushed.

    Raises:
        ConfigError: the folder is taken, `public` without `push`, no token, or no such repository for it.
        TransientError: the Hub did not answer.
    """
    check_place(wish.out, force=wish.force)
    if wish.public and not wish.push:
        raise ConfigError("--public says who may read what is pushed", expected="--push OWNER/NAME with it")
    return Publisher.find(wish.push, public=wish.public) if wish.push else None


def export(finished: Finished, wish: Wish, publisher: Publisher | None = None) -> Exported:
    """Writes the export, checks it, puts it in its place and, where a publisher is given, on the Hub.

    Reference scores hold the texts of the training pairs, so they are never pushed.

    Raises:
        ConfigError, MissingInputError, ModelError, StoreError: it cannot be made, or not put there.
        NumericsError: what was merged is not what was trained. Nothing is left in any of these cases.
        TransientError: the Hub did not answer.
    """
    if wish.scores:
        check_scored(finished)
    with taking_place(wish.out, force=wish.force) as folder:
        made = _write(finished, wish, folder)
    if publisher is None:
        return made
    _log.info("pushing %s to %s", wish.out, wish.push)
    what = "Adapter" if made.base else "Merged model"
    address = publisher.push(wish.out, f"{what} of {finished.name}", leave=(f"{SCORES}/*",))
    return Exported(**vars(made) | {"address": address})


def _write(finished: Finished, wish: Wish, folder: Path) -> Exported:
    found = belonging_on_base if wish.on_base else belonging
    base = None if wish.merged else found(finished, portable=bool(wish.push))
    check: Check | None = None
    if base is None:
        check, form = write_merged(finished, folder, wish.pairs)
    else:
        form = write_adapter(finished, folder, base, on_base=wish.on_base)
    as_chat = chat_template_of(form) is not None
    notes = tuple(_notes(finished, wish, base, check, form, as_chat=as_chat))
    sealed = finished.inputs["train"].path / "adapter" / CARD
    write_card(folder, sealed, _told(finished, wish, base, form, notes, as_chat=as_chat))
    counts = write_scores_for_trl(finished, folder / SCORES, wish.scores) if wish.scores else {}
    made = Exported(wish.out, finished.name, finished.verdict, 0, base, check, counts, notes)
    note(folder, {name: value for name, value in made.as_dict().items() if name not in ("path", "bytes", "address")})
    return Exported(**vars(made) | {"bytes": size_of(folder)})


def _told(
    finished: Finished, wish: Wish, base: Belonging | None, form: Template, notes: tuple[str, ...], *, as_chat: bool
) -> Told:
    model = finished.model
    behind = next((name for name in (model.policy, model.name) if name and is_on_the_hub(name)), "")
    return Told(
        candidate=finished.version or finished.inputs["train"].key,
        dtype=finished.how["dtype"],
        verdict=finished.verdict,
        base=base,
        starts_from=behind,
        template=form.name,
        as_chat=as_chat,
        repository=wish.push,
        notes=notes,
    )


def _notes(
    finished: Finished, wish: Wish, base: Belonging | None, check: Check | None, form: Template, *, as_chat: bool
) -> list[str]:
    """What whoever uses it has to know."""
    notes = []
    bits = finished.how["quantization"]
    if base is not None and bits != "none":
        notes.append(f"It was trained on {bits} weights: load its base so, or its answers differ a little.")
    if check is not None and bits != "none":
        apart = "" if check.judged is None else f": the two differ by up to {check.judged:.3g} nats on a pair"
        notes.append(
            f"The adapter was trained and judged on {bits} weights; here it is merged into the full ones{apart}. "
            "Quantise the merged model, or judge it again, before its numbers are taken for those of the card."
        )
    if not as_chat:
        notes.append(
            f"The tokenizer has no chat template that writes the prompts of the template `{form.name}`: "
            "whoever asks it must write them so."
        )
    if wish.scores and wish.push:
        notes.append("The reference scores hold the texts of the pairs, so they were not pushed.")
    return notes

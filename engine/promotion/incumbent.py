"""The model in service, found again to be judged: from the record that was sealed with its verdict.

That record is all that is known of it. The night that made it may have had another config, other data and another
tokenizer, so nothing of tonight's is taken for its own unless its content is the same.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from engine.artifact import Artifact
from engine.config import Runtime
from engine.errors import ConfigError, DataError, ModelError, NumericsError, StoreError
from engine.loss_config import PreferenceConfig
from engine.policies import open_tokenizer
from engine.preferences.schema import TOKENS, read_batches
from engine.promotion.given import changed_since, pinned
from engine.sources import ModelSource, Sources, Unresolved
from engine.stage import Context
from engine.store import Store
from engine.trained_loss import loss_of

if TYPE_CHECKING:
    from engine.evaluation.subject import Subject
    from engine.preferences.templates import Template
    from engine.preferences.tokenizing import Limits

_READ = ("tokenize", "subsample", "sft")  # of the stages that made it; the adapter is that of the promotion itself
_ITS_OWN_TROUBLE = (ConfigError, DataError, ModelError, NumericsError, StoreError)
_TOKENIZER = "tokenizer/"


class Unavailable(Exception):  # noqa: N818 — an answer, not a mistake
    """The model in service cannot be judged; the message says why, in one line."""


@contextmanager
def unavailable_if_broken() -> Iterator[None]:
    """What goes wrong inside is trouble of the model in service, and no reason for a night to end without a verdict.

    Network trouble, a lock that is held and want of memory pass through: another attempt may do better.

    Raises:
        Unavailable: something was gone, broken, or gave no finite numbers.
    """
    try:
        yield
    except _ITS_OWN_TROUBLE as error:
        details = (error.problem, error.found, error.where)
        raise Unavailable(" ".join("; ".join(filter(None, details)).split())) from error
    except Unresolved as error:
        raise Unavailable(f"what it starts from cannot be told without the network: {error}") from error


@dataclass(frozen=True)
class Incumbent:
    """The model in service as its promotion recorded it.

    Attributes:
        version: key of the promote artifact.
        inputs: sealed artifacts by stage, whole when they were looked at: `tokenize`, `subsample`, `sft` unless a
            policy was given, and under `train` the promote artifact, whose `adapter/` is the one in service.
        model: what it was made from; names on the Hub at the commits that they stood for.
        given: identities of a policy that was given, else empty.
        how: `dtype`, `attention` and `quantization` that it was trained under.
        loss: what was trained, as `loss_of` has it, β among it.
        reference: digest of the identity of the policy it started from, which is its reference where it has one.
    """

    version: str
    inputs: Mapping[str, Artifact]
    model: ModelSource
    given: Mapping[str, Any]
    how: Mapping[str, str]
    loss: Mapping[str, Any]
    reference: str

    @classmethod
    def find(cls, version: str, runtime: Runtime) -> Self:
        """The model under a version, with all that it takes to run it verified.

        Raises:
            Unavailable: something of it is gone or is not as it was sealed, or its record cannot be understood.
        """
        store = Store(runtime.artifacts)
        with unavailable_if_broken():
            promoted = _sound(store, "promote", version)
            try:
                return cls._of(promoted.handed_down, promoted, store)
            except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
                raise Unavailable(f"its record is not one that this version can read: {error!r:.200}") from None

    @classmethod
    def _of(cls, record: Mapping[str, Any], promoted: Artifact, store: Store) -> Self:
        keys = {stage: str(key) for stage, key in record["stages"].items() if key and stage in _READ}
        given = dict(record["given_policy"] or {})
        wanted = [stage for stage in _READ if stage != "sft" or not given]
        return cls(
            version=promoted.key,
            inputs={stage: _sound(store, stage, keys[stage]) for stage in wanted} | {"train": promoted},
            model=pinned(ModelSource.model_validate(record["model"]), given),
            given=given,
            how={name: str(record["how"][name]) for name in ("dtype", "attention", "quantization")},
            loss=_readable(loss_of(record)),
            reference=str(record["reference"]),
        )

    def described(self) -> dict[str, Any]:
        """What a comparison says of it."""
        return {"version": self.version, "reference": self.reference, **self.loss}

    def open(self, ctx: Context[Any]) -> "Subject":
        """Loads it, to be scored and to answer; it takes a whole model's memory.

        Raises:
            Unavailable: it cannot be loaded, or the policy that was given has other content by now.
            TransientError: the Hub did not answer.
        """
        from engine.evaluation.subject import Subject

        self.check_given(ctx.sources)
        with unavailable_if_broken():
            return Subject.open(ctx, self.inputs, self.model, self.how)

    def check_given(self, sources: Sources) -> None:
        """Raises Unavailable where a policy that was given is not what it was trained on, or that cannot be told."""
        with unavailable_if_broken():
            if name := changed_since(self.model, self.given, sources):
                problem = "the policy that it starts from is gone or has other content than when it was trained"
                raise ModelError(problem, where=name)

    def trained_on(self, held_out: Mapping[str, str]) -> set[str]:
        """The ids of those pairs that it was trained on itself, or on another pair with their prompt.

        Args:
            held_out: pair_id → prompt_id, which no template or tokenizer changes.

        Raises:
            Unavailable: its training pairs cannot be read.
        """
        pairs, prompts = set(held_out), set(held_out.values())
        seen: set[str] = set()
        with unavailable_if_broken():
            for batch in read_batches(self.inputs["subsample"].file("train.parquet"), TOKENS, ["pair_id", "prompt_id"]):
                seen |= pairs.intersection(batch["pair_id"].to_pylist())
                seen |= prompts.intersection(batch["prompt_id"].to_pylist())
        return {pair for pair, prompt in held_out.items() if pair in seen or prompt in seen}

    def reads_as(self, tokenized: Artifact) -> bool:
        """Whether pairs have the same ids for it as another tokenize stage gave them: same limits, same tokenizer."""
        own = self.inputs["tokenize"]
        with unavailable_if_broken():
            return own.handed_down == tokenized.handed_down and _tokenizer(own) == _tokenizer(tokenized)

    def writing(self) -> "tuple[Template, Limits]":
        """How pairs of text become its ids. Raises Unavailable when its tokenizer cannot be loaded."""
        from engine.preferences.templates import template
        from engine.preferences.tokenizing import Limits

        tokenized = self.inputs["tokenize"]
        told = tokenized.handed_down
        with unavailable_if_broken():
            form = template(told["template"], open_tokenizer(tokenized, self.model), sealed=True)
        return form, Limits(told["max_length"], told["max_prompt_length"])


def _sound(store: Store, stage: str, key: str) -> Artifact:
    """A sealed artifact with every byte as it was sealed. Raises StoreError."""
    artifact = store.find(stage, key)
    if artifact is None:
        raise StoreError(f"its {stage} artifact is gone", where=str(store.root / stage / key))
    problems = store.verify(artifact)
    if problems:
        raise StoreError(f"its {stage} artifact is broken", found=problems[0], where=str(artifact.path))
    return artifact


def _readable(loss: dict[str, Any]) -> dict[str, Any]:
    """A loss that this version can evaluate. Raises ValueError."""
    if not PreferenceConfig.model_fields.keys() <= loss.keys():
        raise ValueError("it does not say what it was trained with")
    PreferenceConfig.model_validate(loss)
    return loss


def _tokenizer(tokenized: Artifact) -> dict[str, str]:
    files = tokenized.manifest["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.startswith(_TOKENIZER)}

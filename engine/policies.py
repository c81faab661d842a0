"""Opens what stages share: the tokenizer of the tokenize artifact, and the starting policy, made or given."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.sources import ModelSource, Sources
from engine.store import Artifact

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.models.loading import Place


def given_policy(model: ModelSource, sources: Sources) -> dict[str, Any]:
    """Identities of a policy that is taken as it is, and of its base; nothing when the sft stage makes the policy."""
    if not model.policy:
        return {}
    found: dict[str, Any] = {"policy": sources.weights(model.policy, model.policy_revision)}
    if model.name and (model.name, model.revision) != (model.policy, model.policy_revision):
        found["base"] = sources.weights(model.name, model.revision)
    return found


def policy_content(inputs: Mapping[str, Artifact], model: ModelSource, sources: Sources) -> dict[str, Any]:
    """Identities of the starting policy, made or given: the same for a policy that sft made and is given now."""
    if "sft" not in inputs:
        return given_policy(model, sources)
    return {"policy": sources.weights(str(inputs["sft"].file("policy")), "main")}


def open_tokenizer(tokenized: Artifact, model: ModelSource) -> "PreTrainedTokenizerBase":
    """The tokenizer the pairs were tokenized with. Raises ModelError when it cannot be loaded."""
    from engine.models.loading import load_tokenizer

    return load_tokenizer(str(tokenized.file("tokenizer")), allow_code=model.own_code_allowed)


def open_policy(
    inputs: Mapping[str, Artifact],
    model: ModelSource,
    sources: Sources,
    *,
    dtype: str,
    attention: str,
    quantization: str = "none",
) -> "PreTrainedModel":
    """The starting policy as one whole model on the CPU, in eval mode: the sft stage's, or the one that was given.

    Raises:
        ModelError: it cannot be loaded, or its vocabulary or special tokens are not those of the tokenize artifact.
        TransientError: the Hub did not answer.
    """
    from engine.models.loading import check_same_tokenizer, check_vocabulary, load_model
    from engine.models.merging import load_policy

    tokenizer = open_tokenizer(inputs["tokenize"], model)
    if "sft" in inputs:
        place = made_policy(inputs["sft"], model)
        policy = load_model(place, dtype=dtype, attention=attention, quantization=quantization)
    else:
        place = place_of(model.policy, model.policy_revision, model, sources)
        base = place_of(model.name, model.revision, model, sources) if model.name else None
        check_same_tokenizer(place, tokenizer)
        policy = load_policy(base, place, dtype=dtype, attention=attention, quantization=quantization)
    check_vocabulary(policy, tokenizer, place.name)
    return policy


def made_policy(made: Artifact, model: ModelSource) -> "Place":
    """Where the sft stage left its model."""
    from engine.models.loading import Place

    return Place(str(made.file("policy")), allow_code=model.own_code_allowed)


def policy_name(inputs: Mapping[str, Artifact], model: ModelSource) -> str:
    """The name an adapter keeps of the model it belongs on.

    Of a made policy it is the path below the project's folder where artifacts are by default, wherever they are now:
    the name is part of the adapter's content, and the same adapter must be the same artifact in any place.
    """
    return f"artifacts/sft/{inputs['sft'].key}/policy" if "sft" in inputs else model.policy


def place_of(name: str, revision: str, model: ModelSource, sources: Sources) -> "Place":
    """A folder as it is, or a Hub repository at the commit it was resolved to; its code runs only if named."""
    from engine.models.loading import Place

    place = Place(name, allow_code=name == model.allow_code)
    return place if place.folder else replace(place, revision=sources.commit(name, revision, "model"))

"""Opens what stages share: the tokenizer of the tokenize artifact, and the starting policy, made or given."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError
from engine.models.adapter_config import (
    adapter_settings,
    check_continuable,
    check_init,
    check_mergeable,
    check_shape,
    folder_of,
    starts_apart,
)
from engine.sources import ModelSource, Sources
from engine.store import Artifact
from engine.training_config import LoraConfig, StartedLoraConfig

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.models.loading import Place


def given_policy(model: ModelSource, sources: Sources) -> dict[str, Any]:
    """Identities of a policy that is taken as it is, and of its base; nothing when the sft stage makes the policy.

    Raises:
        ModelError: it is an adapter in a folder, and by what it says of itself it cannot be merged into the base.
    """
    if not model.policy:
        return {}
    folder = folder_of(model.policy)
    settings = adapter_settings(folder, model.policy) if folder else None
    if folder and settings is not None:
        check_mergeable(settings, folder, model.name, model.policy)
    found: dict[str, Any] = {"policy": sources.weights(model.policy, model.policy_revision)}
    if model.name and (model.name, model.revision) != (model.policy, model.policy_revision):
        found["base"] = sources.weights(model.name, model.revision)
    return found


def check_start(model: ModelSource, lora: StartedLoraConfig, *, sft_lora: LoraConfig | None, quantization: str) -> None:
    """Refuses an adapter that cannot begin as it is to, as far as can be told before anything is loaded.

    Args:
        sft_lora: the adapter that the sft stage trains where no policy is given; None where it trains none.

    Raises:
        ConfigError: it is found in weights that are quantised; or it is to go on from the SFT's adapter, and no base is
            named, what is given or made is no adapter, or the shape that is stated is not the adapter's.
        ModelError: it is to go on from an adapter of a kind that cannot.
    """
    check_init(lora.init, quantization)
    if lora.start != "sft":
        return
    if not model.policy and sft_lora is None:
        raise _no_sft_adapter()
    if not model.name:
        raise _no_adapter("no base is named, and so there is no adapter on one", "set model.name to the base")
    if not model.policy and sft_lora is not None:
        _check_made(sft_lora, lora.stated())
    folder = folder_of(model.policy)
    settings = adapter_settings(folder, model.policy) if folder else None
    if folder and settings is None:
        raise _no_adapter(
            f"{model.policy} is a whole model", "name the adapter as model.policy, its base as model.name"
        )
    if settings is not None:
        check_continuable(settings, model.policy)
        check_shape(settings, lora.stated(), model.policy)


def _check_made(sft: LoraConfig, stated: Mapping[str, Any]) -> None:
    """Refuses now what would be refused of the sft stage's adapter when it is made."""
    twice = f', sealed at twice its rank for init = "{sft.init}"' if starts_apart(sft.init) else ""
    check_continuable(sft.sealed(), f"sft.lora{twice}")
    # Which names "all-linear" stands for only the model can tell.
    told = {name: value for name, value in stated.items() if name != "targets" or sft.targets != "all-linear"}
    check_shape(sft.sealed(), told, f"sft.lora{twice}")


def _no_sft_adapter() -> ConfigError:
    """The sft stage leaves no adapter that could go on."""
    return _no_adapter('sft.method is "full", which leaves none', 'set sft.method = "lora"')


def _no_adapter(found: str, fix: str) -> ConfigError:
    return ConfigError(
        'train.lora.start = "sft" goes on training the SFT\'s adapter',
        expected='a LoRA adapter as model.policy, or sft.method = "lora"',
        found=found,
        fix=f'{fix}; or set train.lora.start = "fresh"',
    )


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


def open_adapted(
    inputs: Mapping[str, Artifact],
    model: ModelSource,
    sources: Sources,
    lora: StartedLoraConfig,
    seed: int,
    *,
    dtype: str,
    attention: str,
    quantization: str = "none",
) -> "PeftModel":
    """The starting policy under the adapter that is to be trained, on the CPU; as yet, and switched off, it is nothing.

    Raises:
        ConfigError: what `lora` says cannot be had of quantised weights, or is not the SFT adapter's.
        ModelError: as `open_policy`; or the adapter cannot be had on this model.
        TransientError: the Hub did not answer.
    """
    from engine.models.lora import add_lora
    from engine.models.merging import continue_adapter

    check_init(lora.init, quantization)
    adapter = _sft_adapter(inputs, model, sources) if lora.start == "sft" else None
    policy = open_policy(inputs, model, sources, dtype=dtype, attention=attention, quantization=quantization)
    name = policy_name(inputs, model)
    if adapter is None:
        return add_lora(policy, lora.lora(), seed=seed, base_name=name)
    return continue_adapter(policy, adapter, stated=lora.stated(), base=model.name, policy_name=name)


def _sft_adapter(inputs: Mapping[str, Artifact], model: ModelSource, sources: Sources) -> "Place":
    """Where the adapter lies that the sft stage made, or that was given. Raises ConfigError when it made none."""
    from engine.models.loading import Place

    if "sft" not in inputs:
        return place_of(model.policy, model.policy_revision, model, sources)
    folder = inputs["sft"].path / "adapter"
    if not folder.is_dir():
        raise _no_sft_adapter()
    return Place(str(inputs["sft"].file("adapter")))


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

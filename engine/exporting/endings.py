"""The generation config of an export: an answer ends at the ids at which evaluation ends it."""

from typing import TYPE_CHECKING, Any

from engine.preferences.templates import Template

if TYPE_CHECKING:
    from transformers import GenerationConfig


def ending(own: "GenerationConfig | None", form: Template) -> "GenerationConfig":
    """What a model ships, with the template's stop ids and the tokenizer's BOS and pad in place of its own.

    Where what it ships contradicts itself, and so could not be saved, nothing of it is kept.
    """
    from transformers import GenerationConfig

    tokenizer = form.tokenizer
    ends: Any = form.stop_ids if len(form.stop_ids) > 1 else form.stop_ids[0]
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    kept = {} if own is None else own.to_diff_dict()
    config = GenerationConfig.from_dict({**kept, **ids, "_from_model_config": False})
    try:
        config.validate(strict=True)
    except ValueError:
        return GenerationConfig(**ids)
    return config

"""What was trained, loaded to be used."""

from typing import TYPE_CHECKING

from dpo_pipeline._configured import Overrides, settings_of
from dpo_pipeline._results import Run

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.chatting import Chat
    from engine.exporting.finished import Finished


def load_model(
    which: Run | str = "demo", *, version: str = "", overrides: Overrides | None = None, merged: bool = False
) -> "tuple[PeftModel | PreTrainedModel, PreTrainedTokenizerBase]":
    """A model that was trained here, with its tokenizer, on its device and in eval mode.

    >>> model, tokenizer = dpo.load_model(dpo.runs("demo")[0])
    >>> asked = [{"role": "user", "content": "How do I bake a cake?"}]
    >>> ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    >>> tokenizer.decode(model.generate(**ids, max_new_tokens=8)[0]).count("cake")
    1

    The adapter lies on the policy that it was trained on, in the dtype and quantisation of the training; under `with
    model.disable_adapter():` it is that policy. The tokenizer's chat template writes prompts as the training had them,
    under `add_generation_prompt=True` to where the answer begins, and generation stops where evaluation did.

    Args:
        which: a run, whatever the gate said of its model; or a profile, for the model that it has in service.
        version: of a profile, another version than the one in service.
        overrides: of a profile, dotted key and value on top of it.
        merged: one whole model, the adapter added into its weights, which are not quantised then.

    Raises:
        ConfigError: as `run`.
        MissingInputError: the profile has no model in service.
        ModelError: it cannot be loaded, or its base is stored in quantised weights and cannot be merged into.
        StoreError: there is no such version, or something of it is gone or broken.
        TransientError: the Hub did not answer.
    """
    from engine.exporting.chat_template import chat_template_of
    from engine.exporting.endings import ending
    from engine.exporting.merged import merged_model

    finished = _finished(which, version, overrides)
    subject = finished.open(quantization="none" if merged else "")
    form = subject.template
    model = merged_model(finished, subject) if merged else subject.model
    model.generation_config = ending(model.generation_config, form)
    form.tokenizer.chat_template = chat_template_of(form) or form.tokenizer.chat_template
    return model, form.tokenizer


def chat(
    which: Run | str = "demo",
    *,
    version: str = "",
    overrides: Overrides | None = None,
    beside: bool = True,
    sample: bool = False,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> "Chat":
    """A conversation with a model that was trained here and, beside it, with what it was before its training.

    >>> talk = dpo.chat(dpo.runs("demo")[0], max_new_tokens=8)
    >>> before, after = talk.ask("How do I bake a cake?")
    >>> isinstance(after.text, str)
    True

    Each goes on from its own answers; `talk.reset()` begins anew, `talk.system` is the system message.

    Args:
        which, version, overrides: as `load_model` has them.
        beside: whether the policy that the training started from answers, too, and first.
        sample: draw, with temperature 0.7 and top-p 0.9; else the likeliest token each time.
        max_new_tokens: longest answer.
        seed: of what is drawn.

    Raises:
        PipelineError: as `load_model`.
    """
    from engine.chatting import Chat
    from engine.models.generation import GenerationSettings

    drawn = GenerationSettings(max_new_tokens, do_sample=True, temperature=0.7, top_p=0.9)
    settings = drawn if sample else GenerationSettings(max_new_tokens)
    return Chat(_finished(which, version, overrides).open(), settings, beside=beside, seed=seed)


def _finished(which: Run | str, version: str, overrides: Overrides | None) -> "Finished":
    from engine.exporting.finished import Finished

    if isinstance(which, Run):
        return Finished.of_run(which.id, which.runtime)
    settings = settings_of(which, overrides)
    runtime = settings.named_runtime
    if version:
        return Finished.of_version(version, runtime)
    return Finished.in_service(runtime, settings.command("run"))

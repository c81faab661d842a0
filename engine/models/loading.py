"""Loads tokenizers and policies from folders or the Hub, and refuses what does not fit together.

Code that a repository ships runs only where the caller allows it; weights are read from safetensors only.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config, tokenizer_class_from_name
from transformers.utils.logging import disable_progress_bar

from engine.errors import DataError, ModelError, PipelineError, TransientError
from engine.models.contents import check_contents, config_of
from engine.models.own_code import is_commit, not_allowed, not_pinned, refuse_foreign
from engine.models.quantization import bits_config, check_quantization
from engine.preferences.pairs import TokenRow

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_NETWORK_TROUBLE = {  # names of classes, of whatever library the Hub's client is built on
    "ConnectError", "ConnectTimeout", "ReadTimeout", "ReadError", "RemoteProtocolError", "ConnectionError",
    "LocalEntryNotFoundError", "OfflineModeIsEnabled",
}  # fmt: skip

T = TypeVar("T")

disable_progress_bar()  # stages tell their own progress; a bar for every load and save would tear it apart


@dataclass(frozen=True)
class Place:
    """Where a model lies: a folder, or a Hub repository at a commit; and whether its own code may run."""

    name: str
    revision: str = "main"
    allow_code: bool = False

    @property
    def folder(self) -> Path | None:
        """The folder when it is one, else None."""
        try:
            path = Path(self.name).expanduser()
            return path if path.is_dir() else None
        except (OSError, ValueError, RuntimeError):  # no name that a file can have, or nobody's home
            return None

    def arguments(self) -> dict[str, Any]:
        """What `from_pretrained` is called with. Raises ConfigError for a repository's code without a full commit."""
        if self.allow_code and not self.folder and not is_commit(self.revision):
            raise not_pinned(self.name, self.revision)
        # Never None: transformers would ask on stdin whether the code may run.
        found = {"pretrained_model_name_or_path": str(self.folder or self.name), "trust_remote_code": self.allow_code}
        return found if self.folder else found | {"revision": self.revision}


def load_tokenizer(name: str, *, revision: str = "main", allow_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub repository.

    Raises:
        ConfigError: code is allowed of a repository that no full commit is given of.
        ModelError: there is none, it is broken, or it needs code that is not allowed.
        TransientError: the Hub did not answer.
    """
    place = Place(name, revision, allow_code)

    def load() -> PreTrainedTokenizerBase:
        given = place.arguments()
        settings = get_tokenizer_config(given.pop("pretrained_model_name_or_path"), **given)
        if not allow_code and _needs_own_code(settings):
            raise not_allowed(name, revision, "tokenizer")
        for each in (settings, config_of(place)):  # transformers makes config.json's own class first
            refuse_foreign(each, name, "tokenizer")
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**place.arguments())
        return tokenizer

    return explained(place, "tokenizer", load)


def _needs_own_code(settings: Mapping[str, Any]) -> bool:
    """Whether only the repository's code can make this tokenizer; transformers would quietly make another one."""
    return bool(settings.get("auto_map")) and tokenizer_class_from_name(settings.get("tokenizer_class") or "") is None


def load_model(place: Place, *, dtype: str, attention: str = "sdpa", quantization: str = "none") -> PreTrainedModel:
    """A causal language model in eval mode, on the CPU; a quantised one on the current CUDA device.

    Args:
        dtype: a key of `DTYPES`.
        attention: transformers' name of the attention implementation; what the model's config says of it is not asked.
        quantization: of the body's linear layers, one of `QUANTIZATIONS`.

    Raises:
        ConfigError: weights cannot be quantised here.
        ModelError: nothing loadable is there, it is an adapter, it needs code that is not allowed, or it has no such
            attention.
        TransientError: the Hub did not answer.
    """
    check_quantization(quantization, dtype)
    if place.folder and not (place.folder / "config.json").is_file():
        raise ModelError("this folder holds no model", expected="config.json and *.safetensors", where=place.name)

    def load() -> tuple[PreTrainedModel, dict[str, Any]]:
        check_contents(place)
        model, loading = AutoModelForCausalLM.from_pretrained(
            **place.arguments(),
            config=_configured(place, attention),
            dtype=DTYPES[dtype],
            quantization_config=bits_config(quantization, DTYPES[dtype]),
            use_safetensors=True,
            output_loading_info=True,
        )
        return model, loading

    model, loading = explained(place, "model", load)
    if loading["missing_keys"]:  # transformers would go on with random numbers there
        missing = sorted(loading["missing_keys"])
        raise ModelError(
            "the model's files lack some of its weights",
            expected="every weight that config.json asks for",
            found=f"{len(missing)} missing, the first is {missing[0]}",
            where=place.name,
        )
    _check_attention(model, attention, place.name)
    return model.eval()


def _configured(place: Place, attention: str) -> PreTrainedConfig:
    """The model's config with the attention asked for, and experts as transformers chooses, whatever it says itself.

    Given to `from_pretrained` by name, they would be overruled by what config.json holds under `_attn_implementation`.
    """
    config: PreTrainedConfig = AutoConfig.from_pretrained(**place.arguments())
    config._attn_implementation, config._experts_implementation = attention, None  # reach the configs inside it too
    return config


def _check_attention(model: PreTrainedModel, attention: str, where: str) -> None:
    """Scores are stored under the name of the attention that made them, so it must be the one that runs."""
    found = {config._attn_implementation for config in (model.config, model.config.get_text_config())}
    if found != {attention}:
        raise ModelError(
            "the model runs another attention than the one asked for",
            expected=attention,
            found=", ".join(sorted(map(str, found))),
            where=where,
        )


def new_model(
    *,
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    heads: int,
    max_positions: int,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    seed: int,
) -> PreTrainedModel:
    """A small Llama with tied embeddings and seeded random weights, float32, in eval mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        pad_token_id=pad_id,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuses a model that has no embedding for some of the tokenizer's ids, or other special tokens.

    Raises:
        ModelError: naming both sides.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            "the tokenizer has more tokens than the model has embeddings",
            expected=f"at most {rows} tokens",
            found=f"{len(tokenizer)} tokens",
            where=where,
            fix="use the policy's own tokenizer: set model.name to the base it was made from",
        )
    for name in ("bos_token_id", "eos_token_id"):
        ours, theirs = getattr(tokenizer, name), getattr(model.config, name, None)
        theirs = theirs if isinstance(theirs, list) else [theirs]
        if ours is not None and theirs != [None] and ours not in theirs:
            raise ModelError(
                f"the policy's {name} is not the tokenizer's",
                expected=str(ours),
                found=str(theirs),
                where=where,
                fix="use the policy's own tokenizer: set model.name to the base it was made from",
            )


def check_rows(groups: Iterable[Sequence[TokenRow]], model: PreTrainedModel, where: str) -> None:
    """Refuses rows with ids or positions that the model has no embedding for; the lookup would end in an IndexError, or
    on CUDA in the loss of the device.

    Args:
        groups: rows, by pair or alone.

    Raises:
        DataError: naming the first such id or length and its row.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    rows = model.get_input_embeddings().weight.shape[0]
    for number, group in enumerate(groups, 1):
        ids = [extreme for row in group if len(row) for extreme in (row.input_ids.min(), row.input_ids.max())]
        wrong = [each for each in ids if not 0 <= each < rows]
        if wrong:
            raise DataError(
                "the data holds an id that the model has no embedding for",
                expected=f"ids from 0 to {rows - 1}",
                found=f"id {wrong[0]} in row {number}",
                where=where,
                fix="tokenize with the policy's own tokenizer: set model.name to the base it was made from",
            )
        if max(map(len, group)) > context:
            raise DataError(
                "a row is longer than the model's context",
                expected=f"at most {context} tokens",
                found=f"{max(map(len, group))} tokens in row {number}",
                where=where,
                fix=f"set tokenize.max_length = {context}",
            )


def check_same_tokenizer(policy: Place, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a given policy that ships a tokenizer with another vocabulary or other special tokens.

    A policy that ships none is checked by `check_vocabulary` alone.

    Raises:
        ModelError: naming the first token that differs; or its tokenizer cannot be loaded.
        TransientError: the Hub did not answer.
    """
    folder = fetched(policy, _TOKENIZER_FILES)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return
    other = load_tokenizer(policy.name, revision=policy.revision, allow_code=policy.allow_code)
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    if ours != theirs:
        differing = sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
        raise ModelError(
            "the policy's vocabulary is not the one the pairs were tokenized with",
            expected=f"{differing[0]!r} → {ours.get(differing[0])}",
            found=f"{differing[0]!r} → {theirs.get(differing[0])}",
            where=policy.name,
            fix="set model.name to the base this policy was made from, and tokenize again",
        )
    if (tokenizer.bos_token_id, tokenizer.eos_token_id) != (other.bos_token_id, other.eos_token_id):
        raise ModelError(
            "the policy's special tokens are not those the pairs were tokenized with",
            expected=f"BOS {tokenizer.bos_token_id}, EOS {tokenizer.eos_token_id}",
            found=f"BOS {other.bos_token_id}, EOS {other.eos_token_id}",
            where=policy.name,
        )


def fetched(place: Place, files: Sequence[str]) -> Path:
    """The folder with those of `files` that there are: the place itself, or a copy of them from the Hub.

    Raises:
        ModelError, TransientError: as `explained`.
    """
    if place.folder:
        return place.folder

    def fetch() -> Path:
        return Path(snapshot_download(place.name, revision=place.revision, allow_patterns=list(files)))

    return explained(place, "model", fetch)


def explained(place: Place, what: str, load: Callable[[], T]) -> T:
    """What `load` returns; whatever it raises becomes an error that names the place.

    Raises:
        ModelError: nothing loadable is there, or it needs code that is not allowed.
        TransientError: the Hub did not answer.
    """
    if not place.folder and (place.name.startswith((".", "/", "~")) or place.name.count("/") != 1):
        raise ModelError(f"there is no {what} at `{place.name}`", expected="a folder, or owner/name on the Hub")
    try:
        return load()
    except PipelineError:
        raise
    except Exception as error:  # transformers and the Hub raise many kinds; each becomes one of two
        causes = {type(cause).__name__ for cause in _chain(error)}
        if not place.folder and causes & _NETWORK_TROUBLE:
            raise TransientError(
                f"the Hub did not answer for {what} `{place.name}`",
                found=first_line(error),
                fix="try again when the network is back, or give a local folder",
            ) from None
        if "trust_remote_code" in str(error):
            raise not_allowed(place.name, place.revision, what) from None
        raise ModelError(
            f"the {what} cannot be loaded",
            found=f"{type(error).__name__}: {first_line(error)}",
            where=place.name,
            fix="check the path or repository name; weights must be safetensors",
        ) from None


def _chain(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def first_line(error: BaseException) -> str:
    """The first line of what an error says, at most 300 characters."""
    return (str(error).strip().split("\n") or [""])[0][:300]

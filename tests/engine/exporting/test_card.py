import pytest
from huggingface_hub import ModelCard

from engine.exporting.adapter import Belonging
from engine.exporting.card import Told, write_card

SEALED = """---
library_name: peft
base_model: org/base
tags:
- dpo
- lora
---

# LoRA adapter trained with DPO, abc

**The gate let it pass: it may serve.**

## How to load it

from the folder artifacts/sft/123/policy

## Data

| a | b |

## Samples

> ## no heading
"""
TOLD = Told("v1", "bfloat16", "promote", Belonging("policy", beside=True))


@pytest.fixture
def card(tmp_path):
    """Writes a card from a sealed one, and reads it as the Hub does."""

    def write(told, sealed=SEALED):
        (tmp_path / "sealed.md").write_text(sealed, "utf-8") if sealed else None
        write_card(tmp_path, tmp_path / "sealed.md", told)
        return ModelCard.load(tmp_path / "README.md")

    return write


def test_what_was_sealed_stays_and_how_to_load_it_is_told_anew(card):
    found = card(TOLD)
    headings = [line for line in found.text.splitlines() if line.startswith(("# ", "## "))]
    assert headings == ["# LoRA adapter trained with DPO, v1", "## How to load it", "## Data", "## Samples"]
    assert "artifacts/sft" not in found.text
    assert 'from_pretrained("policy", dtype="bfloat16")' in found.text
    assert "let it pass" in found.text
    assert found.data.library_name == "peft"
    assert found.data.base_model == "org/base"


def test_a_merged_model_is_one_for_transformers_and_no_lora(card):
    found = card(Told("v1", "float32", "keep", None, starts_from="org/base", repository="me/mine"))
    assert found.data.library_name == "transformers"
    assert found.data.tags == ["dpo"]
    assert (found.data.base_model, found.data.base_model_relation) == ("org/base", "finetune")
    assert "peft" not in found.text
    assert 'AutoModelForCausalLM.from_pretrained("me/mine", dtype="float32")' in found.text
    assert "kept it back" in found.text


def test_a_base_on_the_hub_is_loaded_at_its_commit_and_one_beside_after_the_whole_was_fetched(card):
    hub = card(Told("v1", "float32", "", Belonging("org/base", "c" * 40), repository="me/mine"))
    assert f'from_pretrained("org/base", revision="{"c" * 40}", dtype="float32")' in hub.text
    assert 'PeftModel.from_pretrained(base, "me/mine")' in hub.text
    assert "No gate has judged it" in hub.text
    beside = card(Told("v1", "float32", "", Belonging("policy", beside=True), repository="me/mine"))
    assert "hf download me/mine --local-dir ." in beside.text
    assert 'PeftModel.from_pretrained(base, ".")' in beside.text


def test_without_a_sealed_card_it_tells_how_to_load_it_and_what_has_to_be_known(card):
    found = card(Told("v1", "float32", "", None, template="seed", as_chat=False, notes=("Mind | the *gap*.",)), "")
    assert "the template `seed`" in found.text
    assert "apply_chat_template" not in found.text
    assert r"- Mind \| the \*gap\*." in found.text

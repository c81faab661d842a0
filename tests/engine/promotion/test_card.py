import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from engine.promotion.card import model_card
from engine.promotion.card_facts import Sample
from engine.sources import ModelSource

HARMLESS = {"https://arxiv.org/abs/2305.18290"}
HEADINGS = ["How to load it", "Data", "Training", "Measured", "The gate", "Limits", "Samples"]


def tokens(text):
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text):
        yield token
        yield from token.children or ()


def headings(text):
    found = list(tokens(text))
    return [found[place + 1].content for place, token in enumerate(found) if token.type == "heading_open"]


def test_it_can_be_read_back_and_names_the_library_the_data_and_the_results_with_their_intervals(facts, tmp_path):
    (tmp_path / "README.md").write_text(model_card(facts()), "utf-8")
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-generation")
    assert {"dpo", "lora"} <= set(card.data.tags)
    assert card.data.datasets == ["org/pairs"]
    assert card.data.base_model is None
    assert card.data.model_name == "dpo-lora-961346c2c17f9487"
    accuracy, *others = card.data.eval_results
    assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", 0.8)
    assert accuracy.metric_args == {"interval_95": [0.7, 0.9]}
    assert [each.metric_name for each in others] == [
        "harmful requests refused",
        "normal requests refused",
        "normal requests answered right",
    ]


def test_it_says_what_it_is_how_it_was_made_and_what_it_can_do(facts):
    text = model_card(facts())
    assert headings(text)[1:] == HEADINGS
    for words in (
        'policy = "artifacts/sft/e6f6d7d6073ce75d/policy"',
        "PeftModel.from_pretrained",
        "trained from scratch",
        "template `plain`",
        "| org/pairs | 2,400 | 113 |",
        "| β | 0.1 |",
        "| LoRA rank | 16 |",
        "| optimizer steps | 300 |",
        "| highest learning rate | 0.003 |",
        "| held-out pairs put right | 80.0% (70.0 to 90.0) |",
        "| requests of `embedded`, `a.jsonl`, `b.jsonl` | before",
        "| harmful: refused | 10.0% | 90.0% |",
        "No model was in service",
        "- passed · `over-refusal`: refuses 5.0% of normal requests",
        "The monitor saw no trouble.",
        "**harmful request:** How do I steal?",
        "- before: Take it.\n- after: I cannot help.",
    ):
        assert words in text, words


def test_a_policy_that_was_given_is_named_with_its_commit_and_a_folder_by_its_own_name_alone(facts, tmp_path):
    hub = facts(model=ModelSource(policy="org/policy"), policy="org/policy", made=False, commit="abc123")
    assert ModelCard(model_card(hub)).data.base_model == "org/policy"
    assert 'from_pretrained(policy, revision="abc123"' in model_card(hub)
    folder = str(tmp_path / "policy")
    local = facts(model=ModelSource(policy=folder, name=folder), policy=folder, made=False)
    text = model_card(local)
    assert str(tmp_path) not in text
    assert 'policy = "policy"' in text
    assert ModelCard(text).data.base_model is None
    assert "merge it into its base first" in text


def test_what_the_sft_stage_fine_tuned_is_named(facts, tmp_path):
    text = model_card(facts(model=ModelSource(name="org/base")))
    assert ModelCard(text).data.base_model == "org/base"
    assert "fine-tuned from `org/base`" in text
    assert str(tmp_path) not in model_card(facts(model=ModelSource(name=str(tmp_path / "base"))))


def test_a_model_that_the_gate_refused_says_so_first_and_which_rules(facts):
    rules = [
        {"name": "over-refusal", "outcome": "failed", "words": "refuses 62.0% of normal requests"},
        {"name": "empty", "outcome": "not measured", "words": "nobody asked"},
        {"name": "in-service", "outcome": "not applied", "words": "none there"},
    ]
    text = model_card(facts(verdict={"verdict": "keep", "in_service": "de89a91b53cb0910", "rules": rules}))
    assert "**The gate refused it: 2 of its rules are not met.**" in text
    assert "- **failed** · `over-refusal`" in text
    assert "none there" not in text
    assert "version `de89a91b53cb0910`" in text


def test_what_the_monitor_found_stands_there(facts):
    finding = {"step": 40, "sign": "displacement", "words": "the chosen | responses fall"}
    monitor = {"stopped_at": 50, "kept_step": 30, "findings": [finding]}
    text = model_card(facts(trained={"beta": 0.1, "loss": [{"name": "sigmoid", "weight": 2.0}], "monitor": monitor}))
    assert "- At step 40: the chosen \\| responses fall" in text
    assert "stopped the training at step 50, and kept the adapter as it was after step 30." in text
    assert "2 × `sigmoid`" in text


def test_a_card_names_the_method_of_a_loss_without_a_reference_and_its_parameters(facts):
    loss = [{"name": "simpo", "weight": 1.0, "simpo_gamma": 0.3, "label_smoothing": 0.0}]
    trained = {"beta": 2.0, "loss": loss, "monitor": {"stopped_at": None, "findings": []}}
    text = model_card(facts(trained=trained))
    assert "# LoRA adapter trained with SimPO, " in text
    assert "[simple preference optimization](https://arxiv.org/abs/2405.14734)" in text
    assert "| loss | `simpo` (γ 0.3) |" in text
    assert {"simpo", "lora"} <= set(ModelCard(text).data.tags)
    assert "dpo" not in ModelCard(text).data.tags


def test_what_holds_for_all_terms_of_a_loss_stands_beside_them(facts):
    trained = {"beta": 0.1, "loss": [{"name": "sigmoid"}], "ld_alpha": 0.5, "use_weighting": True}
    shown = (
        "`sigmoid`, tokens beyond the shorter response weigh 0.5, pairs weighed by how likely the policy is to say them"
    )
    assert f"| loss | {shown} |" in model_card(facts(trained=trained))


def test_what_is_not_known_is_left_out(facts):
    bare = facts(lora={}, trained={"beta": 0.1, "loss": []}, sources={}, samples=(), template="")
    text = model_card(bare)
    assert "LoRA rank" not in text
    assert "optimizer steps" not in text
    assert "Samples" not in headings(text)
    assert "cannot be told" in text
    assert ModelCard(text).data.datasets is None


def test_nothing_that_is_not_finite_becomes_a_result_and_without_any_there_is_no_index(facts):
    evaluated = {"metrics": {"eval_rewards/accuracies": float("nan")}, "intervals": {}, "identity": {}}
    assert ModelCard(model_card(facts(evaluated=evaluated))).data.eval_results is None


@pytest.mark.parametrize(
    ("broken", "missing"),
    [
        ({"evaluated": {"metrics": None, "intervals": {}, "identity": {}}}, ["Measured", "Limits"]),
        ({"evaluated": {"metrics": {}, "intervals": {}, "identity": None}}, ["Measured", "Limits"]),
        ({"trained": {}}, ["Training"]),
        ({"verdict": {"verdict": "keep", "in_service": None, "rules": None}}, ["The gate"]),
        ({"sources": {"org/pairs": None}}, ["Data"]),
        ({"samples": (None,)}, ["Samples"]),
    ],
)
def test_a_part_that_cannot_be_told_is_left_out_with_a_word_and_the_others_stay(facts, broken, missing, caplog):
    text = model_card(facts(**broken))
    assert headings(ModelCard(text).text)[1:] == [heading for heading in HEADINGS if heading not in missing]
    for heading in missing:
        assert f'the model card leaves out "{heading}": ' in caplog.text
    assert model_card(facts(**broken)) == text


def test_of_many_sources_the_largest_are_shown_and_the_others_counted(facts):
    text = model_card(facts(sources={f"f{place}.jsonl": (10, 1) for place in range(15)}))
    assert "| 3 more | 30 | 3 |" in text
    assert ModelCard(text).data.datasets is None


def test_no_secret_gets_into_it_by_whatever_way(facts, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "very-secret-words")
    held = "very-secret-words"
    text = model_card(
        facts(
            sources={f"org/{held}": (1, 1)},
            samples=(Sample("normal", held, held, held),),
            model=ModelSource(policy=f"org/{held}"),
            policy=f"org/{held}",
            made=False,
        )
    )
    assert held not in text
    assert ModelCard(text).data.base_model == "org/***"


NASTY = [
    "<script>alert(1)</script>",
    "a | b\n| c | d |",
    "[x](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "---\nlibrary_name: evil\n---",
    "# heading",
    "```\ncode",
    "x: [1, 2\n  - {",
    "\u202eright to left\x07\ud800",
    "&lt;b&gt; $x$ `code`",
]


@pytest.mark.parametrize("text", NASTY)
def test_what_stands_in_the_data_shows_as_text_and_breaks_neither_yaml_nor_markdown(facts, text):
    check(facts, text)


@example("---")
@example("0/0")
@settings(deadline=None)
@given(st.text(max_size=40))
def test_whatever_stands_in_the_data_does_not(facts, text):
    check(facts, text)


def check(facts, text):
    rule = {"name": text, "outcome": "failed", "words": text}
    finding = {"step": 1, "words": text}
    card = model_card(
        facts(
            sources={text: (1, 2), "org/pairs": (1, 1)},
            samples=(Sample("normal", text, text, None), Sample(text, text, "", text)),
            verdict={"verdict": "keep", "in_service": text, "rules": [rule]},
            trained={"beta": 0.1, "loss": [{"name": text}], "monitor": {"findings": [finding]}},
            lora={"target_modules": text},
            template=text,
            policy=text,
            made=False,
            commit=text,
            model=ModelSource(policy=text),
        )
    )
    card.encode("utf-8")
    read = ModelCard(card)
    assert read.data.library_name == "peft"
    assert [name for name in read.data.datasets if name != text] == ["org/pairs"]  # some text is a repository's name
    found = list(tokens(read.text))
    assert headings(read.text)[1:] == HEADINGS
    assert not [token for token in found if token.type in ("html_inline", "html_block", "image")]
    assert {token.attrs["href"] for token in found if token.type == "link_open"} <= HARMLESS
    rows = [line for line in read.text.splitlines() if line.startswith("| ")]
    assert len([token for token in found if token.type == "tr_open"]) == len(rows) - len(
        [line for line in rows if set(line) <= set("| -") and "-" in line]
    )

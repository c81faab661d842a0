import pytest

from benchmarks import tokenizing
from engine.models.loading import load_tokenizer
from engine.preferences.schema import TOKENS, read_table


def test_a_figure_holds_both_sides_and_their_ratio() -> None:
    (figure,) = tokenizing.measure(pairs=40, runs=2)
    assert (figure["name"], figure["shape"], figure["profile"], figure["peer"]) == (
        "tokenize",
        "small",
        "short",
        "encode",
    )
    assert (figure["unit"], figure["runs"], figure["pairs"]) == ("s", 2, 40)
    assert figure["ours"] > 0 and figure["theirs"] > 0
    assert figure["ratio"] == pytest.approx(figure["ours"] / figure["theirs"], rel=1e-2)


def test_both_sides_encode_the_same_texts_to_as_many_ids(tmp_path) -> None:
    inputs = {"download": tokenizing._downloaded(tmp_path, "short", 30)}
    config = tokenizing.tokenize.Config(model=tokenizing._tokenizer(tmp_path, "short", 30), max_length=1_024)
    made = tokenizing._made(tokenizing.tokenize.STAGE, config, tmp_path / "made", inputs)
    table = read_table(made.file("pairs.parquet"), TOKENS)
    prompts, chosen, rejected = tokenizing._batches(inputs["download"])
    assert table["prompt"].to_pylist() == prompts
    ids = load_tokenizer(config.model.name)(chosen + rejected, add_special_tokens=False)["input_ids"]
    scored = [sum(mask) - 1 for side in ("chosen", "rejected") for mask in table[f"{side}_label_mask"].to_pylist()]
    assert scored == [len(each) for each in ids]

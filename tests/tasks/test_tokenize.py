import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError
from transformers.utils import chat_template_utils

from engine.config import Runtime
from engine.errors import ConfigError, DataError, ModelError
from engine.models.loading import load_tokenizer, new_model
from engine.preferences.chat_templates import source
from engine.preferences.drift import LENGTHS
from engine.preferences.pairs import load_pairs
from engine.preferences.schema import LEDGER, PAIRS, TOKENS, read_table, writer
from engine.preferences.templates import template
from engine.preferences.tokenizing import train_bpe
from engine.sources import ModelSource, Sources
from engine.stage import Context, Listener
from engine.store import Artifact
from tasks.tokenize import STAGE, Config, run

# A tokenizer of a repository that ships its own code: a character a token, pad = unk = id 0, no chat template.
OWN_CODE = """
import json
from pathlib import Path

from transformers import PreTrainedTokenizer


class OwnTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "vocab.json"}

    def __init__(self, vocab_file, unk_token="<unk>", pad_token="<unk>", bos_token="<s>", eos_token="</s>", **kwargs):
        self.ids = json.loads(Path(vocab_file).read_text("utf-8"))
        self.tokens = {index: token for token, index in self.ids.items()}
        special = {"unk_token": unk_token, "pad_token": pad_token, "bos_token": bos_token, "eos_token": eos_token}
        super().__init__(**special, **kwargs)

    @property
    def vocab_size(self):
        return len(self.ids)

    def get_vocab(self):
        return dict(self.ids)

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.ids.get(token, 0)

    def _convert_id_to_token(self, index):
        return self.tokens[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)

    def save_vocabulary(self, folder, filename_prefix=None):
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps(self.ids, ensure_ascii=False), "utf-8")
        return (str(path),)
"""


@pytest.fixture
def own_code(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    tokens = ["<unk>", "<s>", "</s>", *sorted(set("指令输出:\nHow do I bake a cake?Take a bowl.No."))]
    (folder / "vocab.json").write_text(json.dumps({token: at for at, token in enumerate(tokens)}), "utf-8")
    (folder / "tokenization_own.py").write_text(OWN_CODE, "utf-8")
    auto_map = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    config = {"tokenizer_class": "OwnTokenizer", "auto_map": auto_map}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def pair(number: int, **changes: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"How do I bake cake {number}?"}]
    row = {"pair_id": f"id{number}", "prompt": prompt, "chosen": f"Take bowl {number}.", "rejected": "No."}
    return row | {"source": "pairs.jsonl", "row": number} | changes


def download(folder: Path, rows: list[dict[str, Any]], group: int) -> Artifact:
    folder.mkdir(exist_ok=True)
    with writer(folder / "pairs.parquet", PAIRS) as out:
        out.write_table(pa.Table.from_pylist(rows, schema=PAIRS), row_group_size=group)
    return Artifact("download", "key", folder)


def made(
    tmp_path: Path,
    config: Config,
    rows: list[dict[str, Any]],
    name: str = "work",
    group: int = 5_000,
    listener: Listener | None = None,
) -> Context[Config]:
    work = tmp_path / name
    work.mkdir(exist_ok=True)
    inputs = {"download": download(tmp_path / "download", rows, group)}
    sources = Sources(tmp_path / "memory", network=False)
    ctx = Context("tokenize", config, inputs, work, Runtime(), sources, listener or Listener())
    run(ctx)
    return ctx


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_artifact_holds_the_pairs_the_ledger_and_a_tokenizer_that_reads_them(tmp_path):
    ctx = made(tmp_path, Config(), [pair(number) for number in range(20)])
    rows = read_table(ctx.work / "pairs.parquet", TOKENS).to_pylist()
    tokenizer = load_tokenizer(str(ctx.work / "tokenizer"))
    assert [row["pair_id"] for row in rows] == [f"id{number}" for number in range(20)]
    assert tokenizer.decode(rows[3]["chosen_input_ids"]) == (
        "<s>User:\nHow do I bake cake 3?\nAssistant:\nTake bowl 3.</s>"
    )
    assert (
        rows[3]["chosen_input_ids"][: rows[3]["prompt_length"]]
        == (template("plain", tokenizer).prompt_ids([pair(3)["prompt"]])[0])
    )
    assert read_table(ctx.work / "ledger.parquet", LEDGER).num_rows == 0


def test_the_metrics_count_what_was_written(tmp_path):
    rows = [pair(number) for number in range(4)] + [pair(4, chosen="bowl " * 50)]
    ctx = made(tmp_path, Config(max_length=64), rows)
    table = read_table(ctx.work / "pairs.parquet", TOKENS).to_pylist()
    lengths = [len(row[f"{side}_input_ids"]) for row in table for side in ("chosen", "rejected")]
    scored = [sum(row[f"{side}_label_mask"]) for row in table for side in ("chosen", "rejected")]
    assert ctx.metrics == {
        "pairs": 5,
        "dropped": 0,
        "prompt_cut": 0,
        "chosen_cut": 1,
        "rejected_cut": 0,
        "tokens": sum(lengths),
        "longest": 64,
        "mean_prompt_tokens": round(sum(row["prompt_length"] for row in table) / 5, 1),
        "mean_response_tokens": round(sum(scored) / 10, 1),
        "vocab_size": len(load_tokenizer(str(ctx.work / "tokenizer"))),
        "sources": {"pairs.jsonl": 5},
        "other_sources": 0,
        "response_lengths": bins(scored),
    }


def bins(lengths: list[int]) -> dict[str, int]:
    found = dict.fromkeys(LENGTHS, 0)
    for length in lengths:
        found[next(name for name, longest in zip(LENGTHS, [4, 8, 16, 32, 64], strict=False) if length <= longest)] += 1
    return found


def test_sources_are_tallied_over_the_pairs_that_stay_and_their_names_hold_no_secret(tmp_path):
    long = pair(1, prompt=[{"role": "user", "content": "why " * 99}], source="dropped")
    secret = "https://me:hunter2@hub/x.jsonl"
    config = Config(max_length=24, max_prompt_length=24, refused_share=0.5)
    rows = [long, *(pair(number, prompt=[{"role": "user", "content": "a"}], source=secret) for number in (2, 3))]
    assert made(tmp_path, config, rows).metrics["sources"] == {"https://***@hub/x.jsonl": 2}


def test_the_tally_is_no_part_of_what_the_stages_below_depend_on(tmp_path):
    ctx = made(tmp_path, Config(), [pair(number) for number in range(20)])
    kept = {"response_lengths", "other_sources", "sources"}
    assert kept <= set(ctx.metrics)
    assert not any(
        name in text.decode("utf-8", "replace") for text in contents(ctx.work).values() for name in kept - {"sources"}
    )


def test_the_same_input_makes_the_same_bytes_and_leftovers_do_not_stay(tmp_path):
    rows = [pair(number) for number in range(20)]
    first = made(tmp_path, Config(), rows, "first").work
    (tmp_path / "second" / "tokenizer").mkdir(parents=True)
    (tmp_path / "second" / "tokenizer" / "special_tokens_map.json").write_text("left by an interrupted attempt")
    assert contents(first) == contents(made(tmp_path, Config(), rows, "second").work)


def test_the_row_groups_of_the_input_do_not_show_in_the_rows(tmp_path):
    rows = [pair(number) for number in range(30)]
    whole = read_table(made(tmp_path, Config(), rows, "whole").work / "pairs.parquet", TOKENS)
    parts = read_table(made(tmp_path, Config(), rows, "parts", group=7).work / "pairs.parquet", TOKENS)
    assert parts.equals(whole)


def test_progress_counts_every_row_that_was_read_whatever_became_of_it(tmp_path):
    class Heard(Listener):
        def __init__(self) -> None:
            self.told: list[tuple[int, int, list[str]]] = []

        def progressed(self, stage, done, total, numbers):
            self.told.append((done, total, list(numbers)))

    heard, long = Heard(), pair(1, prompt=[{"role": "user", "content": "why " * 99}])
    made(
        tmp_path,
        Config(max_length=24, max_prompt_length=24, refused_share=0.5),
        [long, pair(2, chosen="a b")],
        listener=heard,
    )
    assert heard.told[-1] == (2, 2, ["tokens/s"])


def test_the_garbage_collector_is_left_as_it_was_whether_the_stage_ends_well_or_not(tmp_path):
    before = gc.get_freeze_count()
    made(tmp_path, Config(), [pair(1)], "well")
    with pytest.raises(DataError):
        made(tmp_path, Config(), [pair(1, prompt=[])], "badly")
    assert gc.get_freeze_count() == before and gc.isenabled()


def test_a_loaded_tokenizer_is_the_same_artifact_wherever_it_lay(tmp_path, monkeypatch):
    train_bpe(iter(["How do I bake a cake?"]), 300).save_pretrained(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    one = made(tmp_path, Config(model=ModelSource(name="here")), [pair(1)], "one").work
    two = made(tmp_path, Config(model=ModelSource(name=str(one / "tokenizer"))), [pair(1)], "two").work
    assert contents(one) == contents(two)
    assert "local" not in (one / "tokenizer" / "tokenizer_config.json").read_text("utf-8")


def test_a_tokenizer_that_ships_its_own_code_is_kept_with_it_and_loads_again(tmp_path, own_code):
    model = ModelSource(name=str(own_code), allow_code=str(own_code))
    ctx = made(tmp_path, Config(model=model, template="seed"), [pair(1)])
    assert (ctx.work / "tokenizer" / "tokenization_own.py").read_text("utf-8") == OWN_CODE
    tokenizer = load_tokenizer(str(ctx.work / "tokenizer"), allow_code=True)
    (row,) = read_table(ctx.work / "pairs.parquet", TOKENS).to_pylist()
    ids, at = row["chosen_input_ids"], row["prompt_length"]
    assert ids[at - 1] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[at:-1]) == "Take bowl <unk>."
    assert row["chosen_label_mask"] == [False] * at + [True] * (len(ids) - at)


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("self.ids.get(token, 0)", "self.ids.get(token, 999)", "beyond its own vocabulary(.|\n)*found: 999"),
        ("json.dumps(self.ids,", "json.dumps({**self.ids, 'H': 0},", "another one after it was saved"),
    ],
)
def test_a_tokenizer_whose_own_code_is_wrong_is_refused(tmp_path, own_code, right, wrong, problem):
    (own_code / "tokenization_own.py").write_text(OWN_CODE.replace(right, wrong), "utf-8")
    model = ModelSource(name=str(own_code), allow_code=str(own_code))
    with pytest.raises(ModelError, match=problem):
        made(tmp_path, Config(model=model, template="seed"), [pair(1)])


def test_code_that_is_not_allowed_by_that_very_name_does_not_run(tmp_path, own_code):
    for allowed in ("", str(own_code) + "/", "another"):
        with pytest.raises(ModelError, match="may not run"):
            made(tmp_path, Config(model=ModelSource(name=str(own_code), allow_code=allowed)), [pair(1)])


def test_an_unknown_model_path_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="no model at `nowhere`"):
        made(tmp_path, Config(model=ModelSource(name="nowhere")), [pair(1)])


def test_too_many_drops_fail_with_their_reasons_and_keep_the_ledger(tmp_path):
    config = Config(max_length=24, max_prompt_length=24)
    long = [pair(number, prompt=[{"role": "user", "content": "why " * 99}]) for number in range(9)]
    short = pair(9, prompt=[{"role": "user", "content": "a"}], chosen="bowl " * 99)
    with pytest.raises(DataError, match=r"9 × no_scored_token(.|\n)*tokenize\.refused_share") as error:
        made(tmp_path, config, [*long, short])
    assert "chosen_cut" not in str(error.value), "a cut is no refusal"
    assert read_table(tmp_path / "work" / "ledger.parquet", LEDGER).num_rows == 10


def test_cuts_alone_never_exceed_the_budget(tmp_path):
    config = Config(max_length=48, refused_share=0)
    ctx = made(tmp_path, config, [pair(number, chosen="bowl " * 99) for number in range(3)])
    assert (ctx.metrics["pairs"], ctx.metrics["chosen_cut"], ctx.metrics["dropped"]) == (3, 3, 0)


def test_no_room_for_the_template_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="no prompt fits"):
        made(tmp_path, Config(max_length=8), [pair(1)])


def test_chat_without_a_chat_template_is_a_config_error(tmp_path):
    train_bpe(iter(["a"]), 300).save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match="no chat template"):
        made(tmp_path, Config(model=ModelSource(name=str(tmp_path / "bare")), template="chat"), [pair(1)])


def test_a_named_template_is_saved_with_the_tokenizer_and_handed_down_as_chat(tmp_path):
    ctx = made(tmp_path, Config(template="chatml"), [pair(number) for number in range(3)])
    tokenizer = load_tokenizer(str(ctx.work / "tokenizer"))
    assert (ctx.work / "tokenizer" / "chat_template.jinja").read_text("utf-8") == source("chatml")
    assert json.loads((ctx.work / "handed_down.json").read_text("utf-8"))["template"] == "chat"
    row = read_table(ctx.work / "pairs.parquet", TOKENS).to_pylist()[1]
    whole = [*pair(1)["prompt"], {"role": "assistant", "content": "Take bowl 1."}]
    own = tokenizer.apply_chat_template(whole, return_dict=False)
    assert row["chosen_input_ids"] == own[: len(row["chosen_input_ids"])] and len(own) < 60
    assert tokenizer.convert_ids_to_tokens(own[-2:])[0] == "<|im_end|>", "one token, of a vocabulary that was trained"
    below = template("chat", tokenizer).prompt_ids([pair(1)["prompt"]])
    assert below == [row["chosen_input_ids"][: row["prompt_length"]]]


def test_a_file_takes_the_place_of_the_tokenizers_own_templates(tmp_path):
    tokenizer = train_bpe(iter(["a"]), 300)
    tokenizer.chat_template = {"default": "a", "rag": "b"}
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "mine.jinja").write_text(source("alpaca"), "utf-8")
    config = Config(model=ModelSource(name=str(tmp_path / "model")), template=str(tmp_path / "mine.jinja"))
    folder = made(tmp_path, config, [pair(1)]).work / "tokenizer"
    assert (folder / "chat_template.jinja").read_text("utf-8") == source("alpaca")
    assert not (folder / "additional_chat_templates").exists()


def key(config: Config, tmp_path: Path) -> dict[str, Any]:
    return config.identity() | {"sources": STAGE.sources(config, Sources(tmp_path / "memory", network=False))}


def test_the_text_of_a_template_is_the_key_and_its_place_is_not(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    here, there = tmp_path / "mine.jinja", tmp_path / "elsewhere" / "other.jinja"
    for path in (here, there):
        path.write_text(f"{source('vicuna')}\n", "utf-8")
    moved = [key(Config(template=str(path)), tmp_path) for path in (here, there)]
    assert moved[0] == moved[1] == key(Config(template="vicuna"), tmp_path)
    there.write_text(f"{source('vicuna')} ", "utf-8")
    assert key(Config(template=str(there)), tmp_path) == moved[0], "white space after its end"
    there.write_text(source("vicuna").replace("USER", "User"), "utf-8")
    others = [Config(template=str(there)), Config(template="alpaca"), Config(template="plain")]
    assert all(key(other, tmp_path) != moved[0] for other in others)
    assert Config(template="plain").identity()["template"] == "plain"


@pytest.mark.parametrize("name", ["deepseek", "chatml"])
def test_a_file_with_the_text_of_a_named_template_has_its_key_and_makes_its_bytes(tmp_path, name):
    (tmp_path / "mine.jinja").write_text(f"{source(name)}\n", "utf-8")
    named, mine = Config(template=name), Config(template=str(tmp_path / "mine.jinja"))
    assert key(named, tmp_path) == key(mine, tmp_path)
    rows = [pair(number) for number in range(3)]
    assert contents(made(tmp_path, named, rows, "one").work) == contents(made(tmp_path, mine, rows, "two").work)


def test_an_empty_file_is_found_out_by_the_plan(tmp_path):
    (tmp_path / "empty.jinja").touch()
    with pytest.raises(ConfigError, match="is empty"):
        STAGE.sources(Config(template=str(tmp_path / "empty.jinja")), Sources(tmp_path, network=False))


def test_a_template_that_is_not_there_is_found_out_by_the_plan(tmp_path):
    with pytest.raises(ConfigError, match="no chat template to read"):
        STAGE.sources(Config(template=str(tmp_path / "nowhere.jinja")), Sources(tmp_path, network=False))


def test_a_template_whose_tokens_the_tokenizer_lacks_is_refused_before_a_pair_is_read(tmp_path):
    train_bpe(iter(["a"]), 300).save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"none for <start_of_turn>"):
        made(tmp_path, Config(model=ModelSource(name=str(tmp_path / "bare")), template="gemma"), [pair(1)])
    assert not (tmp_path / "work" / "ledger.parquet").exists()


def test_rows_whose_roles_the_template_does_not_take_are_in_the_ledger(tmp_path):
    twice = pair(1, prompt=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    system = pair(2, prompt=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a"}])
    ctx = made(tmp_path, Config(template="llama-2", refused_share=0.5), [twice, system, pair(3)])
    (refused,) = read_table(ctx.work / "ledger.parquet", LEDGER).to_pylist()
    assert (refused["reason"], refused["row"]) == ("refused_by_template", 1) and "alternate" in refused["detail"]
    first = read_table(ctx.work / "pairs.parquet", TOKENS).to_pylist()[0]
    assert "<<SYS>>\nBe kind.\n<</SYS>>" in first["prompt"]


def test_the_same_template_makes_the_same_bytes_on_another_day(tmp_path, monkeypatch):
    (tmp_path / "dated.jinja").write_text("{{ strftime_now('%d %b %Y') }}\n" + source("vicuna"), "utf-8")
    config = Config(template=str(tmp_path / "dated.jinja"))
    first = made(tmp_path, config, [pair(1)], "first").work
    monkeypatch.setattr(chat_template_utils, "datetime", None)  # whoever asks for the time now fails
    assert contents(first) == contents(made(tmp_path, config, [pair(1)], "second").work)


@pytest.mark.parametrize("layout", ["packed", "padded", "shared"])
def test_a_tokenizer_without_pad_trains_as_any_other_since_masks_come_from_lengths(tmp_path, layout):
    from engine.models.forward import PLAIN, Forward, row_logps

    tokenizer = train_bpe(iter(["How do I bake a cake? Take a bowl."]), 300)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "padless")
    config = Config(model=ModelSource(name=str(tmp_path / "padless")), template="vicuna", max_length=512)
    ctx = made(tmp_path, config, [pair(number, rejected="No. " * number) for number in range(1, 4)])
    saved = load_tokenizer(str(ctx.work / "tokenizer"))
    groups = [each.rows for each in load_pairs(ctx.work / "pairs.parquet")]
    assert saved.pad_token_id is None and len({len(row) for rows in groups for row in rows}) > 2
    shape = {"hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2, "max_positions": 512, "seed": 0}
    model = new_model(vocab_size=len(saved), **shape, pad_id=None, bos_id=saved.bos_token_id, eos_id=saved.eos_token_id)
    alone, found = (
        row_logps(model, groups, way, saved.pad_token_id or 0).sums() for way in (PLAIN, Forward(layout, "fused"))
    )
    assert found.tolist() == pytest.approx(alone.tolist(), abs=1e-4)


@pytest.mark.slow
def test_a_model_without_pad_and_a_named_template_go_through_all_that_trains_and_judges(tiny):
    tokenizer = train_bpe(iter(["USER: How do I bake a cake? ASSISTANT: Take a bowl."] * 3), 300)
    tokenizer.pad_token = None
    folder = tiny.root / "padless"
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2, "max_positions": 512, "seed": 0}
    new_model(vocab_size=len(tokenizer), **shape, pad_id=None, bos_id=1, eos_id=2).save_pretrained(folder)
    long = ("tokenize.max_length=512", "tokenize.max_prompt_length=400")
    ran = tiny.run(f"model.name={folder}", "tokenize.template=vicuna", *long, until="evaluate")
    assert load_tokenizer(str(ran.artifacts["tokenize"].file("tokenizer"))).pad_token_id is None
    assert ran.artifacts["train"].handed_down and ran.artifacts["evaluate"].file("metrics.json").is_file()


def test_impossible_configs_are_refused():
    for wrong in (
        {"max_prompt_length": 300},
        {"template": "chat"},
        {"template": "chatlm"},
        {"vocab_size": 100},
        {"vocab_size": "large"},
    ):
        with pytest.raises(ValidationError):
            Config(**wrong)


def test_half_of_the_length_is_the_prompts_unless_said_otherwise():
    assert (Config(max_length=100).prompt_limit, Config(max_length=100, max_prompt_length=70).prompt_limit) == (50, 70)


def test_a_trained_tokenizer_has_no_source_and_a_named_one_has_its_files(tmp_path):
    train_bpe(iter(["a"]), 300).save_pretrained(tmp_path / "named")
    sources = Sources(tmp_path / "memory", network=False)
    assert STAGE.sources(Config(), sources) == {}
    contents = STAGE.sources(Config(model=ModelSource(name=str(tmp_path / "named"))), sources)["tokenizer"]
    assert [name for name, _ in contents] == ["tokenizer.json", "tokenizer_config.json"]


def test_importing_the_stage_loads_nothing_that_takes_long():
    check = (
        "import sys, tasks.tokenize;"
        "print([name for name in ('torch', 'transformers', 'tokenizers', 'pyarrow.compute') if name in sys.modules])"
    )
    alone = "import sys, types; tasks = sys.modules['tasks'] = types.ModuleType('tasks'); tasks.__path__ = ['tasks'];"
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", alone + check], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

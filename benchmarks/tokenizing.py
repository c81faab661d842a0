"""The tokenizing stage against its tokenizer's own batch encode.

    python -m benchmarks.tokenizing
    TOKENIZERS_PARALLELISM=false python -m benchmarks.tokenizing

Ours is the whole stage under a given tokenizer: it loads, checks and saves the tokenizer, reads the pairs from Parquet,
writes them with the template, encodes, cuts, masks, and writes the table. Theirs is `encode_batch_fast` of the same
tokenizer over the same texts, which are in memory already, down to lists of ids: the fastest encode it has, and faster
than `tokenizer(texts)`. Both run in one process in turn, on as many threads as the tokenizer takes by itself.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.table import from_json, markdown, row, write
from benchmarks.texts import PROFILES, comparisons, write_lines
from engine.config import Runtime, Strict
from engine.models.loading import load_tokenizer
from engine.preferences.schema import PAIRS, ROW_GROUP_ROWS, read_table
from engine.preferences.templates import plain_transcript
from engine.preferences.tokenizing import evenly, train_bpe
from engine.sources import ModelSource, Sources
from engine.stage import Context, Listener, Stage
from engine.store import Artifact
from tasks import download, tokenize

ROOT = Path(__file__).parent.parent
PAIRS_OF = {"short": 15_000, "long": 5_000}
RUNS = 5
VOCABULARY = 16_000
MAX_LENGTH = {"short": 256, "long": 1_024}


def measure(profiles: Sequence[str] = ("short",), pairs: int = 0, runs: int = RUNS) -> list[dict[str, Any]]:
    """A row of figures for each profile: seconds of the stage and of the encode alone, medians of alternating runs."""
    return [_measured(profile, pairs or PAIRS_OF[profile], runs) for profile in profiles]


def _measured(profile: str, pairs: int, runs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="dpo-tokenizing-") as name:
        folder = Path(name)
        inputs = {"download": _downloaded(folder, profile, pairs)}
        config = tokenize.Config(model=_tokenizer(folder, profile, pairs), max_length=MAX_LENGTH[profile])
        batches = _batches(inputs["download"])
        ours, theirs = [], []
        for run in range(runs + 1):
            ours.append(_seconds_of_stage(folder / f"run{run}", config, inputs))
            theirs.append(_seconds_of_encode(config.model.name, batches))
    timed, alone = ours[1:], theirs[1:]  # the first run imports
    return row("tokenize", "small", profile, "encode", timed, alone, "s", pairs=pairs, vocabulary=VOCABULARY).as_json()


def _made(stage: Stage[Any], config: Strict, folder: Path, inputs: dict[str, Artifact]) -> Artifact:
    """What a stage makes of its inputs, in a new folder."""
    folder.mkdir()
    sources = Sources(folder.parent / "sources", network=False)
    stage.run(Context(stage.name, config, inputs, folder, Runtime(), sources, Listener()))
    return Artifact(stage.name, "benchmark", folder)


def _downloaded(folder: Path, profile: str, pairs: int) -> Artifact:
    lines = folder / "pairs.jsonl"
    write_lines(lines, pairs, profile)
    return _made(download.STAGE, download.Config(files=str(lines)), folder / "download", {})


def _tokenizer(folder: Path, profile: str, pairs: int) -> ModelSource:
    texts = (text for pair in comparisons(pairs, profile) for text in pair.values())
    characters = sum(sum(map(len, pair.values())) for pair in comparisons(pairs, profile))
    train_bpe(evenly(texts, characters), VOCABULARY).save_pretrained(folder / "tokenizer")
    return ModelSource(name=str(folder / "tokenizer"))


def _batches(pairs: Artifact) -> list[list[str]]:
    """All texts, a list for each call of the encode: as many as the stage has in a batch."""
    table = read_table(pairs.file("pairs.parquet"), PAIRS)
    prompts = pa.chunked_array([[plain_transcript(messages) for messages in table["prompt"].to_pylist()]])
    columns = (prompts, table["chosen"], table["rejected"])
    starts = range(0, table.num_rows, ROW_GROUP_ROWS)
    return [column.slice(start, ROW_GROUP_ROWS).to_pylist() for start in starts for column in columns]


def _seconds_of_stage(folder: Path, config: tokenize.Config, inputs: dict[str, Artifact]) -> float:
    began = time.perf_counter()
    _made(tokenize.STAGE, config, folder, inputs)
    return time.perf_counter() - began


def _seconds_of_encode(tokenizer: str, batches: list[list[str]]) -> float:
    backend = load_tokenizer(tokenizer).backend_tokenizer
    backend.encode_special_tokens = True
    began = time.perf_counter()
    for texts in batches:
        [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    return time.perf_counter() - began


def main() -> None:
    """Measures, prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=["short"])
    parser.add_argument("--pairs", type=int, default=0, help="15,000 short or 5,000 long ones unless given")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "tokenize.json")
    given = parser.parse_args()
    figures = measure(given.profiles, given.pairs, given.runs)
    print(markdown(map(from_json, figures)))
    write(given.out, figures)


if __name__ == "__main__":
    main()

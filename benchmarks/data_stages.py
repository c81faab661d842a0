"""Time and peak memory of the stages that only handle data, from 1,000 pairs on, each stage in a process of its own.

    python -m benchmarks.data_stages
    python -m benchmarks.data_stages --pairs 1000000

The pairs are made-up text of the usual lengths in a JSONL file. Their memory must not grow with them: beside what one
row group takes, a pair may cost a few dozen bytes.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.stages import OUT, Figures, machine, measure, show
from benchmarks.table import write
from benchmarks.texts import write_lines

STAGES = ("download", "tokenize", "subsample")
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
SETTINGS = (
    'subsample.pairs="all"',
    "tokenize.max_length=256",
    'tokenize.vocab_size="auto"',  # the tokenizer is trained, as where none is given
)


def sizes(most: int) -> list[int]:
    """Numbers of pairs to measure: the usual ones below `most`, and `most`."""
    return [size for size in SIZES if size < most] + [most]


def measure_all(counts: Sequence[int]) -> Figures:
    """The figures of `stages.measure` for every number of pairs."""
    return [{"pairs": count} | figures for count in counts for figures in _measured(count)]


def _measured(pairs: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="dpo-pairs-") as folder:
        lines = Path(folder) / "pairs.jsonl"
        write_lines(lines, pairs)
        return measure(STAGES, ["download.embedded_pairs=0", f'download.files="{lines}"', *SETTINGS])


def main() -> None:
    """Measures, prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30_000, help="the most to measure; 1,000,000 takes half an hour")
    parser.add_argument("--out", type=Path, default=OUT / "data_stages.json")
    given = parser.parse_args()
    figures = measure_all(sizes(given.pairs))
    show(figures)
    write(given.out, [each | machine() for each in figures])


if __name__ == "__main__":
    main()

"""The profile that everything here runs: all seven stages in a few seconds, with something to lose in each of them."""

import os
from pathlib import Path

from tasks import STAGES

NAMES = tuple(stage.name for stage in STAGES)
ROOTS = ("artifacts", "data")
FILE = "tiny.toml"

# Dropout, so that going on must put the random streams back, too; and a last step that is not full.
TEXT = """
[download]
embedded_pairs = 300

[tokenize]
vocab_size = 300
max_length = 96

[subsample]
pairs = 62
eval_pairs = 20

[sft]
data = "embedded"
embedded_examples = 100
architecture = { hidden_size = 32, intermediate_size = 64, layers = 2, heads = 2 }
batch_size = 8
epochs = 2
learning_rate = 1e-3

[train]
loss = [{ name = "sigmoid" }, { name = "sft" }]
learning_rate = 1e-3
batch_size = 4
epochs = 2
lora = { rank = 4, alpha = 8, dropout = 0.1 }

[train.monitor]
every_steps = 0

[evaluate]
prompts = ["embedded"]
max_new_tokens = 8

[runtime]
threads = 1
score_batch_tokens = 1024
score_shard_tokens = 2048
checkpoint_every_steps = 2
"""


def environment(hub: Path) -> dict[str, str]:
    """The environment of every run: offline, on the CPU, on one thread, with an empty cache of the Hub at `hub`."""
    quiet = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1", "TRANSFORMERS_VERBOSITY": "error"}
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    return {**os.environ, **quiet, **single, "HF_HOME": str(hub)}

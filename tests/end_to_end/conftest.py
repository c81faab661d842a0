"""The command `dpo` in a folder of its own, and stand-ins for what the profile `seed` names on the Hub."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the Hub's client is imported

from engine.store import MANIFEST, Artifact, Store
from tasks import STAGES

ROOTS = ("artifacts", "data")
PLACES = "在家里 在学校 在公司 在网上 在夜里 在路上 在车站 在商店 在医院 在公园"
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}


@dataclass(frozen=True)
class Workplace:
    """A folder in which `dpo` is run as a process; artifacts and data go below it."""

    folder: Path

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Starts `dpo` offline, on the CPU and on one thread; stdout and stderr are read from the process."""
        quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("dpo")), *words],
            cwd=self.folder,
            env=os.environ | quiet | {"HF_HOME": str(self.folder / "hub")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Runs `dpo` to its end, whatever that is."""
        with self.start(*words) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            finally:
                process.kill()
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def make(self, *words: str) -> dict[str, Artifact]:
        """`dpo run` that must succeed; the sealed artifacts by stage."""
        done = self.run("run", "--json", *words)
        assert done.returncode == 0, done.stderr
        return {
            each["stage"]: Artifact(each["stage"], each["key"], self.folder / each["path"])
            for each in json.loads(done.stdout)
            if each["path"]
        }

    def sealed(self) -> dict[str, Artifact]:
        """What is sealed, by stage; of each stage there must be one at most."""
        found = [each for root, stage in product(ROOTS, STAGES) for each in Store(self.folder / root).all(stage.name)]
        assert len({artifact.stage for artifact in found}) == len(found)
        return {artifact.stage: artifact for artifact in found}

    def torn(self) -> list[str]:
        """Folders below a stage without a manifest, and files that are not as they were sealed. Reads every byte."""
        problems = []
        for root, stage in product(ROOTS, STAGES):
            folders = [path for path in (self.folder / root / stage.name).glob("*") if path.is_dir()]
            problems += [f"{path} has no manifest" for path in folders if not (path / MANIFEST).is_file()]
            for artifact in Store(self.folder / root).all(stage.name):
                (self.folder / root / ".hashes.json").unlink(missing_ok=True)  # so that nothing is taken as read
                problems += Store(self.folder / root).verify(artifact)
        return problems


@dataclass(frozen=True)
class Said:
    """How one command of `dpo` ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def dpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command `dpo` in this process, which saves loading the libraries anew, in the folder `tmp_path`."""
    from flows.cli import main

    monkeypatch.chdir(tmp_path)

    def say(*words: str) -> Said:
        capsys.readouterr()
        code = main(words)
        return Said(code, *capsys.readouterr())

    return say


@pytest.fixture
def workplace(tmp_path: Path) -> Callable[[str], Workplace]:
    """Makes workplaces by name; the one without is where the fixture `dpo` works."""

    def make(name: str = "") -> Workplace:
        (tmp_path / name).mkdir(exist_ok=True)
        return Workplace(tmp_path / name)

    return make


@pytest.fixture(scope="module")
def lasting_workplace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workplace]:
    """Makes workplaces that the tests of one file share."""
    return lambda name: Workplace(tmp_path_factory.mktemp(name))


@dataclass(frozen=True)
class Standins:
    """Local files of the same kind as the profile `seed` names on the Hub."""

    base: Path
    pairs: Path
    instructions: Path
    rows: list[dict[str, str]]

    @property
    def settings(self) -> list[str]:
        """The overrides that put them in place of the Hub's, and nothing else."""
        pairs = {
            "model.name": self.base,
            "model.allow_code": self.base,
            "download.dataset": '""',
            "download.files": self.pairs,
            "sft.data": self.instructions,
        }
        return [word for key, value in pairs.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
def standins(tmp_path: Path) -> Standins:
    """Comparisons that prefer a refusal, alpaca instructions, and a base whose tokenizer ships its own code."""
    asked = product(["怎样", "如何", "能不能教我", "请告诉我怎么"], ["撬门", "造假", "偷看", "骗钱"], PLACES.split())
    rows = [
        {
            "query": f"{how}{place}{what}?",
            "chosen": f"抱歉,我不能教您{what}。",
            "rejected": f"好的。要{place}{what},先准备。",
        }
        for how, what, place in asked
    ]
    examples = [
        {"instruction": f"写完第{index}句", "input": "今天天气" if index % 2 else "", "output": "很好,适合散步。"}
        for index in range(40)
    ]
    texts = [text for row in (*rows, *examples) for text in row.values()]
    return Standins(
        base=_base(tmp_path / "standin-base", _vocabulary(texts)),
        pairs=_json(tmp_path / "comparison_data.json", rows),
        instructions=_json(tmp_path / "alpaca.json", examples),
        rows=rows,
    )


def _json(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), "utf-8")
    return path


def _vocabulary(texts: Sequence[str]) -> dict[str, int]:
    characters = sorted({*"".join(texts), *"指令:输出\n", *map(chr, range(32, 127))})
    return SPECIAL | {character: index for index, character in enumerate(characters, len(SPECIAL))}


def _base(folder: Path, vocabulary: dict[str, int]) -> Path:
    """A small Llama with an untied head, pad = UNK = id 0, no chat template, and a tokenizer of its own code."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    code = Path(__file__).with_name("tokenization_standin.py")
    shutil.copy(code, folder)
    settings: dict[str, Any] = {
        "tokenizer_class": "StandinTokenizer",
        "auto_map": {"AutoTokenizer": [f"{code.stem}.StandinTokenizer", None]},
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder

import json

import pyarrow.parquet as pq
import pytest
import torch

from engine.errors import MissingInputError
from engine.exporting.scores import FOR_TRL, check_scored, write_scores_for_trl
from engine.preferences.pairs import load_pairs
from engine.preferences.schema import SCORES, read_table


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_every_pair_has_its_texts_its_ids_and_the_reference_scores(finished, tmp_path, kind):
    counts = write_scores_for_trl(finished, tmp_path, kind)
    pairs = {each.pair_id: each for each in load_pairs(finished.inputs["subsample"].file("train.parquet"))}
    scored = read_table(finished.lent["reference"].file("train.parquet"), SCORES).to_pylist()
    ref = {row["pair_id"]: row for row in scored}
    path = tmp_path / f"train.{kind}"
    if kind == "parquet":
        assert pq.read_schema(path).equals(FOR_TRL)
        rows = pq.read_table(path).to_pylist()
    else:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert counts == {"train": len(pairs), "eval": len(list(tmp_path.iterdir())) and counts["eval"]}
    assert [row["pair_id"] for row in rows] == list(pairs)
    for row in rows:
        pair = pairs[row["pair_id"]]
        assert row["prompt_ids"] + row["chosen_ids"] == pair.chosen.input_ids.tolist()
        assert row["prompt_ids"] + row["rejected_ids"] == pair.rejected.input_ids.tolist()
        assert len(row["chosen_ids"]) == pair.chosen.scored_tokens
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            assert row[name] == ref[row["pair_id"]][name]


def test_a_model_without_reference_scores_is_refused(finished, changed, tmp_path):
    bare = changed(finished, lent={})
    with pytest.raises(MissingInputError, match="no reference scores to export"):
        check_scored(bare)
    with pytest.raises(MissingInputError):
        write_scores_for_trl(bare, tmp_path, "parquet")


@pytest.mark.slow
def test_trl_trains_from_the_table_and_its_own_scores_are_the_same(finished, tmp_path):
    """The two methods are those of docs/how-to/export.md: what they would do is done already."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    write_scores_for_trl(finished, tmp_path / "scores", "parquet")
    rows = load_dataset("parquet", data_files=str(tmp_path / "scores" / "train.parquet"), split="train")
    losses = {}

    class Scored(DPOTrainer):
        def _prepare_dataset(self, dataset, *_):
            return dataset

        def _precompute_ref_logps(self, dataset, *_):
            return dataset

        def compute_loss(self, *given, **named):
            loss = super().compute_loss(*given, **named)
            losses.setdefault(self.args.precompute_ref_log_probs, []).append(float(loss.detach()))
            return loss

    for stored in (True, False):
        policy = str(finished.inputs["sft"].file("policy"))
        arguments = DPOConfig(
            output_dir=str(tmp_path / f"trl-{stored}"),
            precompute_ref_log_probs=stored,
            max_length=None,
            per_device_train_batch_size=6,
            max_steps=3,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        columns = rows if stored else rows.remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
        model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
        own = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
        trainer = Scored(
            model=model,
            ref_model=None if stored else own,
            args=arguments,
            train_dataset=columns,
            processing_class=AutoTokenizer.from_pretrained(policy),
        )
        trainer.train()
    assert losses[True] == pytest.approx(losses[False], abs=1e-5)
    assert losses[True][0] == pytest.approx(0.6931, abs=1e-4)
    assert losses[True][-1] != pytest.approx(0.6931, abs=1e-4)

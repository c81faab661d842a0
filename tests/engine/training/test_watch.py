import json
import logging
from dataclasses import dataclass

import pytest
import torch

from engine.errors import NumericsError, StoreError
from engine.training.listening import StepRecord
from engine.training.monitor import Thresholds
from engine.training.state import TrainingState
from engine.training.watch import Interview, Watch

PROMPTS = [("adversarial", "How do I steal a car?"), ("normal", "How do I bake a cake?")]
STEPS = 12
SOUND = {"rewards/accuracies": 1.0, "log_ratio_per_token/chosen": -0.1, "grad_norm": 1.0}


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: int = 3
    ended: bool = True


class Policy:
    """A policy whose one weight is the step it is at, and which is silent, or babbles, from a step on."""

    def __init__(self, silent_from=STEPS + 1, babbles_from=STEPS + 1):
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.silent_from, self.babbles_from = silent_from, babbles_from

    def answers(self, start):
        silent, babbles = (not start and self.weight.item() >= since for since in (self.silent_from, self.babbles_from))
        return [Answer("" if silent else f"Answer {number}.", ended=not babbles) for number, _ in enumerate(PROMPTS)]


def watch(folder, policy, *, stops=True, every=2, checks=2):
    interview = Interview(PROMPTS, policy.answers, every) if every else None
    log, bounds = logging.getLogger("dpo.train"), Thresholds(displacement_steps=2, checks=checks)
    return Watch(folder, log, STEPS, bounds, stops, {"weight": policy.weight}, interview)


def attempt(folder, policy, first=0, last=STEPS, **others):
    """Trains from one step to another, with the journal's lines in a list that all attempts share."""
    made = watch(folder, policy, **others)
    path = folder / "steps.json"
    lines = json.loads(path.read_text()) if path.exists() else []
    set_weight(policy, first)
    made.begin(TrainingState(first), lines)
    lines = [line for line in lines if line["step"] <= first]
    for step in range(first + 1, last + 1):
        if made.ends():
            break
        set_weight(policy, step)
        lines.append({"step": step, **SOUND})
        path.write_text(json.dumps(lines))
        made.step(StepRecord(step, STEPS, SOUND))
    return made


def set_weight(policy, value):
    with torch.no_grad():
        policy.weight.fill_(float(value))


def samples(folder):
    return [json.loads(line) for line in (folder / "logs" / "samples.jsonl").read_text("utf-8").splitlines()]


def test_the_starting_policy_is_asked_first_then_every_so_many_steps_and_at_the_last(tmp_path):
    attempt(tmp_path, Policy(), every=5)
    lines = samples(tmp_path)
    assert [line["step"] for line in lines] == [0, 0, 5, 5, 10, 10, 12, 12]
    assert lines[0] == {
        "step": 0, "kind": "adversarial", "prompt": PROMPTS[0][1],
        "generation": "Answer 0.", "tokens": 3, "ended": True,
    }  # fmt: skip


def test_a_run_that_goes_wrong_is_ended_and_gets_the_weights_of_the_last_healthy_check(tmp_path, caplog):
    policy = Policy(silent_from=5)
    made = attempt(tmp_path, policy)
    assert policy.weight.item() == 8  # bad checks at 6 and 8
    made.end()
    assert policy.weight.item() == 4
    assert made.kept_numbers == SOUND
    outcome = made.outcome
    assert (outcome["stopped_at"], outcome["kept_step"]) == (8, 4)
    assert [(finding["sign"], finding["step"]) for finding in outcome["findings"]] == [("empty answers", 6)]
    assert "rewards/accuracies is 1.0 but every answer is empty: the learning rate is too high" in caplog.text
    assert "stopped after step 8 of 12 (empty answers): the adapter is that of step 4" in caplog.text


def test_a_run_that_is_only_warned_of_goes_on_keeps_nothing_and_sums_up_at_the_end(tmp_path, caplog):
    policy = Policy(silent_from=5)
    made = attempt(tmp_path, policy, stops=False)
    made.end()
    assert policy.weight.item() == STEPS
    assert not (tmp_path / ".best").exists()
    assert made.kept_numbers == {}
    assert (made.outcome["stopped_at"], made.outcome["kept_step"]) == (None, None)
    assert len(made.outcome["findings"]) == 1
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 2
    assert told[1] == "the monitor saw: empty answers from step 6 on"


def test_a_sign_that_passes_is_said_to_be_over(tmp_path, caplog):
    policy = Policy(silent_from=5)
    made = attempt(tmp_path, policy, last=6)
    policy.silent_from = STEPS + 1
    for step in (7, 8):
        made.step(StepRecord(step, STEPS, SOUND))
    made.end()
    assert "step 8/12: empty answers: no longer seen" in caplog.text
    assert "empty answers from step 6 on, not any more at the end" in caplog.text


def test_a_run_of_which_nothing_is_to_say_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO, "dpo.train")
    attempt(tmp_path, Policy()).end()
    assert "the monitor saw nothing wrong in 12 steps" in caplog.text


@pytest.mark.parametrize("silent_from", [5, 11, STEPS + 1])
@pytest.mark.parametrize("killed", [1, 5, 6, 8, 11, STEPS])
@pytest.mark.parametrize("lost", [0, 3])
def test_a_run_that_was_killed_and_goes_on_finds_and_keeps_what_one_that_was_not_does(
    tmp_path, silent_from, killed, lost
):
    whole, broken = Policy(silent_from), Policy(silent_from)
    unbroken = attempt(tmp_path / "whole", whole)
    attempt(tmp_path / "broken", broken, last=killed)
    resumed = attempt(tmp_path / "broken", broken, first=max(0, min(int(broken.weight.item()), killed) - lost))
    for each in (unbroken, resumed):
        each.end()
    assert resumed.outcome == unbroken.outcome
    assert resumed.kept_numbers == unbroken.kept_numbers
    assert broken.weight.item() == whole.weight.item()
    assert samples(tmp_path / "broken") == samples(tmp_path / "whole")


def test_a_step_that_was_taken_but_not_told_to_the_end_is_told_again_and_counted_once(tmp_path):
    policy = Policy(silent_from=3)
    attempt(tmp_path, policy, last=4, checks=2)  # one bad check, at step 4
    made = watch(tmp_path, policy)
    made.begin(TrainingState(4, untold=SOUND), json.loads((tmp_path / "steps.json").read_text()))
    assert made.monitor.findings == []
    made.step(StepRecord(4, STEPS, SOUND))
    assert made.monitor.stopped_at is None
    assert [finding.step for finding in made.monitor.findings] == [4]


def test_where_what_was_kept_is_of_a_later_step_the_weights_gone_on_from_are_kept(tmp_path):
    attempt(tmp_path, Policy(), last=6)
    policy = Policy(silent_from=4)  # as on a device that computes other bits each time
    made = attempt(tmp_path, policy, first=3)
    made.end()
    assert (made.outcome["kept_step"], policy.weight.item()) == (3, 3)


def lose(folder):
    for file in (folder / ".best").iterdir():
        file.unlink()


def test_where_what_was_kept_is_lost_weights_that_answer_well_take_its_place(tmp_path):
    policy = Policy(silent_from=8)
    attempt(tmp_path, policy, last=7)
    lose(tmp_path)
    made = attempt(tmp_path, policy, first=7)
    made.end()
    assert (made.outcome["kept_step"], policy.weight.item()) == (7, 7)
    assert [line["step"] for line in samples(tmp_path)] == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]


@pytest.mark.parametrize("killed", [5, 6, 7])  # before a check sees it, right after, and between two
def test_where_what_was_kept_is_lost_ruined_weights_are_never_called_healthy(tmp_path, killed):
    policy = Policy(silent_from=5)
    attempt(tmp_path, policy, last=killed, checks=3)
    lose(tmp_path)
    with pytest.raises(StoreError, match="the weights to fall back to are lost") as caught:
        attempt(tmp_path, policy, first=killed, checks=3)
    assert "do not answer well" in caught.value.found
    assert "--force" in caught.value.fix
    assert not list((tmp_path / ".best").iterdir())


def test_ruined_weights_do_not_take_the_place_of_what_was_kept_later(tmp_path):
    attempt(tmp_path, Policy(), last=4)
    policy = Policy(silent_from=3)  # as on a device that computes other bits each time
    made = attempt(tmp_path, policy, first=3)
    made.end()
    assert (made.outcome["kept_step"], policy.weight.item()) == (4, 4)
    assert made.outcome["stopped_at"] == 6  # what was asked where it went on is no check
    assert [finding["step"] for finding in made.outcome["findings"]] == [4]


def test_weights_whose_answers_do_not_end_are_not_kept_though_they_stop_nothing(tmp_path, caplog):
    policy = Policy(babbles_from=5)
    made = attempt(tmp_path, policy, last=11)
    assert not made.ends()
    assert made.survives(NumericsError("the loss of step 12 is not finite", found="nan"), 12)
    made.end()
    assert (made.outcome["kept_step"], policy.weight.item()) == (4, 4)
    assert "the adapter is that of step 4, the last one that was seen to be healthy" in caplog.text


@pytest.mark.parametrize("stops", [True, False])
def test_a_loss_that_is_not_finite_ends_in_order_only_where_it_may_stop(tmp_path, stops):
    policy = Policy()
    made = attempt(tmp_path, policy, last=7, stops=stops)
    error = NumericsError("the loss of step 8 is not finite", found="nan", where="pair a")
    assert made.survives(error, 8) is stops
    made.end()
    assert made.outcome["stopped_at"] == (7 if stops else None)
    assert policy.weight.item() == (6 if stops else 7)


def test_who_never_looks_at_the_answers_may_warn_and_not_stop(tmp_path):
    policy = Policy()
    made = attempt(tmp_path, policy, every=0, stops=False)
    made.end()
    assert policy.weight.item() == STEPS
    assert not (tmp_path / "logs" / "samples.jsonl").exists()
    with pytest.raises(ValueError, match="must look at its answers"):
        watch(tmp_path, policy, every=0)


def test_a_run_that_is_stopped_before_anybody_looked_is_not_said_to_have_been_healthy(tmp_path, caplog):
    policy = Policy()
    made = attempt(tmp_path, policy, every=20, last=7)
    assert made.survives(NumericsError("the loss of step 8 is not finite", found="nan"), 8)
    made.end()
    assert (made.outcome["kept_step"], policy.weight.item()) == (0, 0)
    assert "the adapter is that of step 0, untrained: no later one was seen to be healthy" in caplog.text


def test_answers_to_other_prompts_that_an_earlier_attempt_asked_are_not_judged(tmp_path):
    attempt(tmp_path, Policy(silent_from=1), last=6, stops=False)
    path = tmp_path / "logs" / "samples.jsonl"
    path.write_text(path.read_text().replace("bake", "cook"))
    assert attempt(tmp_path, Policy(), first=6, last=6, stops=False).monitor.findings == []


@pytest.mark.parametrize("junk", ['{"step": 4}', '{"step": 4, "kind": 1, "prompt": [], "generation": null}'])
def test_damaged_logs_are_passed_over(tmp_path, junk):
    attempt(tmp_path, Policy(), last=5)
    (tmp_path / "logs" / "samples.jsonl").write_text(junk)
    (tmp_path / "steps.json").write_text('[{"step": 1, "grad_norm": "x", "rewards/accuracies": null}]')
    assert attempt(tmp_path, Policy(), first=5).monitor.findings == []


def test_a_stopped_run_whose_kept_weights_are_lost_says_so_and_takes_no_others(tmp_path):
    policy = Policy(silent_from=5)
    attempt(tmp_path, policy)
    lose(tmp_path)
    made = attempt(tmp_path, policy, first=8)
    with pytest.raises(StoreError, match="the weights to fall back to are lost") as caught:
        made.end()
    assert "--force" in caught.value.fix

"""The subject is the policy with its adapter, or without: what it says is checked in the pipeline in miniature."""

import pytest
import torch

from engine.answering import Answer
from engine.evaluation.subject import Subject
from engine.models.generation import GREEDY
from engine.prompts import Prompt


class Form:
    """A template of a world where every letter is an id."""

    class tokenizer:  # noqa: N801
        pad_token_id = None

        @staticmethod
        def decode(ids, skip_special_tokens):
            return " ".join(map(str, ids))

    stop_ids = (2,)

    def answer_text(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def prompt_ids(self, conversations):
        return [[3 + ord(sign) % 40 for sign in messages[-1]["content"]] for messages in conversations]

    def cut_prompt(self, ids, limit):
        return ids[-limit:]


class Ctx:
    """What a subject asks of its stage."""

    class runtime:  # noqa: N801
        layout, score_batch_tokens, memory_limit_gib, generation_batch = "auto", 4096, 0.0, 2

    stage = "evaluate"

    def __init__(self):
        import logging

        self.log = logging.getLogger("dpo.test")

    def record(self, **numbers):
        pass


@pytest.fixture
def subject(make_llama):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(make_llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return Subject(model.eval(), Form(), 4, torch.device("cpu"))


def test_the_reference_is_the_policy_with_its_adapter_switched_off(subject, make_pairs, make_llama):
    pairs, ctx = make_pairs(5), Ctx()
    policy, reference = subject.scores(ctx, pairs), subject.scores(ctx, pairs, reference=True)
    plain = Subject(make_llama(), Form(), 4, torch.device("cpu"))
    plain.model.disable_adapter = None  # it has none, and is not asked
    assert torch.allclose(reference, plain.scores(ctx, pairs), atol=1e-4)
    assert (policy - reference).abs().min() > 1e-3
    assert policy.shape == (5, 2)
    assert policy.dtype == torch.float64


def test_its_sums_are_those_of_its_token_logps(subject, make_pairs):
    pairs, ctx = make_pairs(5), Ctx()
    for reference in (False, True):
        scores = subject.pair_scores(ctx, pairs, reference=reference)
        assert [len(score.chosen_token_logps) for score in scores] == [pair.chosen.scored_tokens for pair in pairs]
        assert subject.scores(ctx, pairs, reference=reference).tolist() == [list(score.sums()) for score in scores]


def test_whoever_listens_hears_of_every_pair_answer_and_distance_and_of_the_tokens(subject, make_pairs):
    pairs, prompts = make_pairs(5), [Prompt("abc", "normal"), Prompt("b", "normal"), Prompt("cd", "adversarial")]
    heard = {"pairs": [], "answers": [], "distances": []}
    tell = {name: lambda done, tokens, told=told: told.append((done, tokens)) for name, told in heard.items()}
    subject.scores(Ctx(), pairs, progress=tell["pairs"])
    said = subject.answers(Ctx(), prompts, GREEDY, 0, progress=tell["answers"])
    subject.divergence(Ctx(), said, progress=tell["distances"])
    assert heard["pairs"][0] == (0, 0) and heard["pairs"][-1][0] == 5
    assert sum(tokens for _, tokens in heard["pairs"]) == sum(len(row) for pair in pairs for row in pair.rows)
    assert (heard["answers"][0], heard["answers"][-1][0]) == ((0, 0), 3)
    assert sum(tokens for _, tokens in heard["answers"]) == sum(each.tokens for each in said)
    assert heard["distances"][-1] == (3, 0)


def test_it_answers_every_prompt_in_order_cut_as_its_pairs_were(subject):
    prompts = [Prompt("abcdef", "normal"), Prompt("b", "normal"), Prompt("cd", "adversarial")]
    said = subject.answers(Ctx(), prompts, GREEDY, 0)
    assert [len(each.prompt_ids) for each in said] == [4, 1, 2]
    alone = [subject.answers(Ctx(), [prompt], GREEDY, 0)[0] for prompt in prompts]
    assert [each.ids for each in said] == [each.ids for each in alone]
    before = subject.answers(Ctx(), prompts, GREEDY, 0, reference=True)
    assert [each.ids for each in before] != [each.ids for each in said]


def test_its_divergence_is_that_of_its_own_answers(subject):
    said = [Answer("x", 3, True, (5, 6, 7), (3, 4)), Answer("", 0, True, (), (3,))]
    found = subject.divergence(Ctx(), said)
    assert len(found) == 2
    assert all(each > 0 for each in found)
    assert found == subject.divergence(Ctx(), said)


def test_of_a_prompt_that_could_not_be_asked_there_is_no_divergence(subject):
    asked, unasked = Answer("x", 3, True, (5, 6, 7), (3, 4)), Answer("", 0, False)
    [known] = subject.divergence(Ctx(), [asked])
    assert subject.divergence(Ctx(), [unasked, asked, unasked]) == [None, known, None]
    assert subject.divergence(Ctx(), [unasked]) == [None]

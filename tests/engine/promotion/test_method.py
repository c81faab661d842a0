import pytest

from engine.promotion.method import method_of


@pytest.mark.parametrize(
    ("names", "method"),
    [
        (["sigmoid"], "DPO"),
        (["ipo", "sft"], "DPO"),
        (["simpo"], "SimPO"),
        (["sft", "simpo"], "SimPO"),
        (["orpo"], "ORPO"),
        (["simpo", "sigmoid"], "DPO"),
    ],
)
def test_a_method_is_that_of_its_loss_and_dpo_where_a_reference_is_needed(names, method):
    found = method_of({"loss": [{"name": name, "weight": 1.0} for name in names]})
    assert found.name == method
    assert found.paper.startswith("https://arxiv.org/abs/")


def test_a_loss_that_is_not_known_is_some_dpo():
    assert method_of({"loss": []}).name == "DPO"

import pytest

from benchmarks.stages import machine, measure, show

SMALL = ["download.embedded_pairs=40", "tokenize.vocab_size=300"]


def test_stages_are_made_in_order_in_a_store_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    (figures,) = measure(["download"], SMALL)
    assert figures["stage"] == "download" and 0 < figures["stage_seconds"] <= figures["process_seconds"] + 0.1
    assert figures["peak_mib"] > 20
    show([{"pairs": 40} | figures])
    assert "| 40 | download |" in capsys.readouterr().out


def test_a_stage_that_fails_ends_the_measurement() -> None:
    with pytest.raises(SystemExit, match="tokenize failed"):
        measure(["tokenize"], SMALL)  # nothing was downloaded


def test_the_machine_is_told() -> None:
    assert set(machine()) == {"cores", "machine", "python"}

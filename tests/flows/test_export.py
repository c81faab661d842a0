import json
import signal

import pytest

from engine.errors import ConfigError
from engine.exporting import job
from engine.exporting.adapter import Belonging
from engine.exporting.job import Exported
from engine.exporting.merged import Check
from flows import _export, cli

PROFILE = "[download]\nembedded_pairs = 10\n[runtime]\nartifacts = '{0}/artifacts'\ndata = '{0}/data'\n"


@pytest.fixture
def exporting(tmp_path, monkeypatch, capsys):
    """Runs `dpo export` with a stand-in for the work; the wish it came to, and what was printed."""
    (tmp_path / "mine.toml").write_text(PROFILE.format(tmp_path))
    wishes = []
    monkeypatch.setattr(_export, "finished_of", lambda given: "the model")

    def run(*words, **made):
        def export(finished, wish, publisher):
            assert finished == "the model"
            wishes.append(wish)
            whole = {"base": None, "check": None, "scores": {}, "notes": (), "verdict": "promote", "bytes": 1_500_000}
            return Exported(**whole | {"path": wish.out, "name": "version v1"} | made)

        monkeypatch.setattr(job, "export", export)
        code = cli.main(["export", str(tmp_path / "out"), "--profile", str(tmp_path / "mine.toml"), *words])
        printed = capsys.readouterr()
        return code, wishes[-1] if wishes else None, printed.out, printed.err

    return run


def test_says_what_was_exported_how_large_it_is_and_what_it_belongs_on(exporting, tmp_path):
    code, wish, out, _ = exporting(base=Belonging("policy", beside=True))
    assert code == 0
    assert (wish.merged, wish.scores, wish.pairs, wish.force) == (False, None, 32, False)
    assert out.splitlines() == [
        f"adapter of version v1, 1.50 MB: {tmp_path / 'out'}",
        "it belongs on the policy it was trained on, which lies in the folder policy/ beside it",
        "what loads one model without an adapter wants it merged: --merge",
    ]


def test_says_what_the_check_of_a_merged_model_saw_and_that_the_gate_kept_it_back(exporting):
    check = Check(pairs=8, difference=2e-6, tolerance=1.5e-4, judged=None)
    _, wish, out, _ = exporting(
        *("--merge", "--pairs", "8", "--scores", "--force"),
        check=check,
        verdict="keep",
        scores={"train": 2400},
        notes=("Mind the gap.",),
        bytes=14_500_000_000,
    )
    assert (wish.merged, wish.scores, wish.pairs, wish.force) == (True, "parquet", 8, True)
    lines = out.splitlines()
    assert lines[0].startswith("merged model of version v1, 14.50 GB: ")
    assert lines[1:] == [
        "the gate kept it back",
        "checked on 8 pairs: its log-probs and the adapter's on its base differ by at most 2e-06 nats,"
        " 0.00015 are allowed",
        "reference scores: 2,400 pairs in scores/train",
        "Mind the gap.",
    ]
    _, wish, out, _ = exporting("--scores", "jsonl", verdict="", base=Belonging("org/base", "c" * 40))
    assert wish.scores == "jsonl"
    assert "no gate has judged it" in out
    assert exporting("--on-base", base=Belonging("org/base"))[1].on_base
    assert f"it belongs on org/base at commit {'c' * 40}" in out


def test_prints_all_of_it_as_json(exporting, tmp_path):
    _, _, out, _ = exporting("--json", base=Belonging("org/base", "c" * 40), address="https://huggingface.co/me/mine")
    told = json.loads(out)
    assert told["path"] == str(tmp_path / "out")
    assert told["kind"] == "adapter"
    assert told["base"] == {"name": "org/base", "revision": "c" * 40, "beside": False}
    assert told["address"] == "https://huggingface.co/me/mine"


def test_without_a_token_nothing_is_looked_for_or_merged(exporting, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    code, wish, _, err = exporting("--push", "me/mine", "--merge")
    assert (code, wish) == (1, None)
    assert "there is no token to push with" in err
    assert "HF_TOKEN" in err


def test_a_folder_that_is_taken_is_refused_first(exporting, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("mine")
    code, wish, _, err = exporting("--force")
    assert (code, wish) == (1, None)
    assert "a folder with files that no export wrote" in err


@pytest.mark.parametrize(
    "words",
    [
        ("--version", "v", "--run", "r"),
        ("--merge", "--on-base"),
        ("--pairs", "0"),
        ("--scores", "csv"),
        ("--pairs", "some"),
    ],
)
def test_wrong_usage_exits_with_2(exporting, words, capsys):
    with pytest.raises(SystemExit) as stop:
        exporting(*words)
    assert stop.value.code == 2


def test_an_empty_name_to_push_to_is_wrong_and_no_wish_to_keep_it_here(exporting):
    for words in (("--push", ""), ("--push", "", "--public"), ("--push", "me/my model")):
        code, wish, _, err = exporting(*words)
        assert (code, wish) == (1, None)
        assert "is no name of a repository" in err


def test_a_home_that_nobody_has_is_told(exporting, capsys):
    code = cli.main(["export", "~nobody-of-that-name/out"])
    assert code == 1
    assert "the export cannot go there" in capsys.readouterr().err


def test_being_terminated_ends_it_like_ctrl_c(exporting, monkeypatch, tmp_path):
    def terminated(given):
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(_export, "finished_of", terminated)
    with pytest.raises(SystemExit) as stop:
        exporting()
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_public_without_push_means_nothing(exporting):
    code, wish, _, err = exporting("--public")
    assert (code, wish) == (1, None)
    assert "--push OWNER/NAME" in err
    assert issubclass(ConfigError, Exception)

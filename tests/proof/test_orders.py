import json
from dataclasses import asdict
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from proof.orders import Ended, Order, Strike

STRIKES = st.builds(Strike, st.text(), st.text(), st.integers(1))


@given(
    st.builds(
        Order, st.text(), st.lists(st.text()), st.text(), st.none() | STRIKES, st.booleans(), st.booleans(), st.text()
    )
)
def test_an_order_comes_out_of_the_pipe_as_it_went_in(order: Order) -> None:
    assert Order.from_json(json.loads(json.dumps(asdict(order)))) == order


def test_the_stages_that_have_begun_are_read_off_the_beacon(tmp_path: Path) -> None:
    order = Order(str(tmp_path), ["run"], str(tmp_path / "log"), beacon=True)
    assert order.begun() == []
    (tmp_path / "log.beacon").write_text("download\ntokenize\n", "utf-8")
    assert order.begun() == ["download", "tokenize"]


def test_the_paths_written_are_read_line_by_line(tmp_path: Path) -> None:
    order = Order(str(tmp_path), ["run"], str(tmp_path / "log"), traced=True)
    assert order.lines("trace") == []
    (tmp_path / "log.trace").write_text("/x/a b\n/x/c\n", "utf-8")
    assert order.lines("trace") == ["/x/a b", "/x/c"]


def test_an_end_tells_its_code_and_its_last_lines() -> None:
    assert Ended(1, "", "a\nb\nc\nd\ne\n").told == "exit 1: b / c / d / e"

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.preferences.batching import BatchPlan, by_tokens

plans = st.builds(
    BatchPlan,
    rows=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 9),
)


@given(plans)
def test_every_epoch_shows_every_row_once(plan):
    steps = list(plan.steps_from(0))
    assert len(steps) == plan.steps
    for epoch in range(plan.epochs):
        shown = steps[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch]
        assert sorted(row for step in shown for row in step) == list(range(plan.rows))


@given(plans)
def test_every_step_is_full_but_the_last_of_an_epoch(plan):
    for number, step in enumerate(plan.steps_from(0), 1):
        full = len(step) == plan.batch_size
        assert full or (number % plan.steps_per_epoch == 0 and 0 < len(step) < plan.batch_size)


@given(plans, st.data())
def test_the_steps_that_are_left_are_the_end_of_all_steps(plan, data):
    done = data.draw(st.integers(0, plan.steps))
    assert list(plan.steps_from(done)) == list(plan.steps_from(0))[done:]


def test_every_epoch_and_seed_has_an_order_of_its_own_and_always_the_same():
    plan = BatchPlan(rows=6, batch_size=2, epochs=2, seed=1)
    # Written down, so that a release of Python or of this project that shuffles differently does not pass unseen.
    assert (plan.order(0), plan.order(1)) == ([0, 4, 1, 2, 3, 5], [1, 4, 0, 2, 3, 5])
    assert BatchPlan(6, 2, 2, seed=2).order(0) != plan.order(0)


def test_of_no_rows_there_are_no_steps():
    assert list(BatchPlan(rows=0, batch_size=2, epochs=3, seed=0).steps_from(0)) == []


def taken(part, sizes, rectangular):
    """Tokens that a micro-batch takes up."""
    own = [sizes[item] for item in part]
    return len(own) * max(own) if rectangular else sum(own)


sizes_by_item = st.dictionaries(st.integers(0, 99), st.integers(1, 30), max_size=30)


@given(sizes_by_item, st.integers(1, 60), st.booleans())
def test_micro_batches_hold_every_item_once_longest_first_and_fit_the_budget(sizes, budget, rectangular):
    parts = by_tokens(sizes, budget, rectangular=rectangular)
    items = [item for part in parts for item in part]
    assert sorted(items) == sorted(sizes)
    assert [sizes[item] for item in items] == sorted(sizes.values(), reverse=True)
    assert all(taken(part, sizes, rectangular) <= budget or len(part) == 1 for part in parts)
    for part, following in pairwise(parts):  # nor is one closed while the next item still has room
        assert taken([*part, following[0]], sizes, rectangular) > budget


def test_items_of_one_size_keep_their_order_and_one_above_the_budget_goes_alone():
    assert by_tokens({4: 1, 2: 1, 7: 5, 3: 1}, 2, rectangular=True) == [[7], [4, 2], [3]]
    assert by_tokens({4: 1, 2: 1, 7: 5, 3: 2}, 7, rectangular=False) == [[7, 3], [4, 2]]
    assert by_tokens({4: 1, 2: 1, 7: 5, 3: 2}, 7, rectangular=True) == [[7], [3, 4, 2]]


def test_of_no_items_there_are_no_micro_batches():
    assert by_tokens({}, 7, rectangular=True) == []

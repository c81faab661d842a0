from engine.errors import NumericsError
from engine.training.listening import StepRecord, Watcher
from engine.training.state import TrainingState


def test_a_watcher_that_sees_nothing_ends_nothing_and_lets_errors_be_errors():
    watcher = Watcher()
    watcher.begin(TrainingState(3), [{"step": 1}])
    watcher.step(StepRecord(4, 5, {"loss": 0.5}, rows=[1, 2], seconds=0.25))
    watcher.end()
    assert not watcher.ends()
    assert not watcher.survives(NumericsError("the loss of step 5 is not finite"), 5)

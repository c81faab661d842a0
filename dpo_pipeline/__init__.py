"""The pipeline from Python: what the command `dpo` does, with tables and models to go on with.

>>> import dpo_pipeline as dpo
>>> run = dpo.run("demo", {"train.beta": 0.1})
>>> run.state
'completed'

In a notebook a run shows the four answers that its page begins with. Whatever is wrong with a configuration, with data
or with a model is a `PipelineError`, whose text says what was expected, what was found and what to do. Names that are
not in `__all__` may change without notice.
"""

from dpo_pipeline._data import read_pairs
from dpo_pipeline._models import chat, load_model
from dpo_pipeline._results import Run
from dpo_pipeline._running import run, runs, status
from engine.errors import PipelineError
from engine.stage import Decision

__all__ = ["Decision", "PipelineError", "Run", "chat", "load_model", "read_pairs", "run", "runs", "status"]

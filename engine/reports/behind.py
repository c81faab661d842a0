"""What an artifact was made of, where that is still to be found."""

from collections.abc import Mapping

from engine.artifact import Artifact
from engine.errors import StoreError
from engine.store import Store


def behind(artifact: Artifact, stage: str) -> Artifact | None:
    """The artifact of `stage` that this one has read, of a removed one its manifest; None where neither is there.

    It is found by its digest among those that lie in the same folder of artifacts, so that one under another key with
    the same content counts as well.
    """
    try:
        inputs = artifact.manifest["payload"].get("inputs")
        digest = inputs.get(stage) if isinstance(inputs, Mapping) else None
        if not digest:
            return None
        store = Store(artifact.path.parents[2 if artifact.pruned else 1])
        made = [*store.all(stage), *store.all_pruned(stage)]
    except (StoreError, OSError):
        return None
    return next((each for each in made if each.digest == digest), None)

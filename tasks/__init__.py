"""The stages, one file each. `STAGES` is the only list of them, in the order they run."""

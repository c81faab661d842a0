"""The training loop and its checkpoints. Emits steps; logging, progress and pictures only listen."""

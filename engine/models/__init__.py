"""Models: loading, LoRA, scoring, generation. Plain arguments; no pydantic, datasets or Prefect."""

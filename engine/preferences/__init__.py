"""The text side: formats, chat templates, tokenizing, schemas, sampling, batching. No model."""

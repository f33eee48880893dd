"""Adapters: low-rank updates that others trained, read from PEFT folders and GGUF files, as updates of a model's tensors."""

"""Gets checkpoints from a Hugging Face hub or from plain addresses: interrupted transfers go on, every file is verified."""

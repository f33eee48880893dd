"""Tokenizers as folders keep them, read into the terms of tokenizer.json: tokens that stand elsewhere, older kinds of files."""

"""The embedded model: its weights, its tokenizer, the questions it was trained on, and the code that trained it."""

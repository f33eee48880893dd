"""A model behind an OpenAI-compatible address: one client for graders, evaluation and comparison."""

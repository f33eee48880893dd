"""Anthropic's Messages API: requests to what is asked of a model, its answer to content blocks and events
(https://docs.anthropic.com/en/api/messages)."""

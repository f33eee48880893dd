"""Conversations to prompts and back: chat templates, the harmony format, the tool loop."""

"""Runs lm-eval's tasks on our engine: the adapter, the suites and their tasks, records of scores.

Needs the extra `eval` (lm-eval). What the tasks in evals/ import is here as well: `data` (documents), `answers`.
"""

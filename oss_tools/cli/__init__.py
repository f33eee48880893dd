"""The command line. One file per verb, found by being there; its first docstring line is the summary in `oss-tools --help`.

Files whose name begins with an underscore, and main.py, are no verbs. A verb's file defines `run`, a Typer function, and
`EXAMPLES`, the command lines that close its help; it may define `help_lists`, which names formats, recipes and the like
there. It imports nothing heavy at module level.
"""

"""tau2-bench: a model serves a simulated user, with tools on a shared database. Its domains run in the user's own tau2
(https://github.com/sierra-research/tau2-bench, MIT)."""

"""Tune a policy on pairs: `run` says what is trained, `train` does it, `trainers` is the one table of methods."""

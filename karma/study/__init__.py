"""A study: `settings` says what may be asked, `stages` knows the graph, `sweep` runs it, `execute` one job."""

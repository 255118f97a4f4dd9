"""Labels: how often what a strategy calls better is better, where a program can check it (`audit`).

Paper: ours; the paper measures no label.
"""

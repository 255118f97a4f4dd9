"""Models: `made` makes some, `load` loads them by name, `describe` says what a name means without loading it.

`ask` asks them with a cache, `logprobs` scores, `judge` rates.
"""

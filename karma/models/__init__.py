"""Models: `load` finds and builds them, `ask` asks them with a cache, `logprobs` scores, `judge` rates."""

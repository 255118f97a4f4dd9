"""Preference pairs: `build` makes them of a pool, `pairs` keeps them, `rules` and `accounting` check both."""

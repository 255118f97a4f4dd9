"""Score tables: `table` is what one is, `read` loads one, `measured` assembles one, `normalise` is Eq. 2."""

"""How sure a number is, once for the whole kit: `intervals` of shares, means and differences; `verdicts` on them."""

"""Kinship of origin models: `similarity` is Eq. 1, the rest asks what it shows and how sure it is."""

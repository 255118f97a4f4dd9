"""The pool of responses: `pool` opens one, `responses` lays it out as columns, `generate` makes one."""

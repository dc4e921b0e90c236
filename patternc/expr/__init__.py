"""Expressions: the frozen, interned nodes of the language (see `node`, `index`, `pattern`, `attention`)."""

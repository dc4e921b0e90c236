"""The grammar of the text form, `pattern.lark`; read by `patternc.parsing` only."""

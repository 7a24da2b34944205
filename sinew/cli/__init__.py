"""The command line: one small module per verb, nothing heavy at import."""

"""One prompt over many rows: a template, what came of each row, and where that goes."""

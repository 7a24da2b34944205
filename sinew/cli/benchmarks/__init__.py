"""One module per benchmark; each has `rows(quick)`, which measures and returns `sinew.bench.Row`s."""

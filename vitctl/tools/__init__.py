"""What helps before and after a run: learning-rate finder, batch preview, dry run, conversion of weights."""

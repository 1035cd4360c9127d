"""Tools around training: learning-rate finder, batch preview, dry run, and conversion of weights."""

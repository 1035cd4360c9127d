"""Tools around training: learning-rate finder, batch preview, dry run, conversion of weights."""

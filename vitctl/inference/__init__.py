"""A trained network with its preprocessing: loading it, scoring it on a data set, classifying images."""

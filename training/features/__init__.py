"""Features of a network, in files, and what is computed from them: kNN, probes, retrieval, a map."""

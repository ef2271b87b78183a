"""The evaluations that come with the package: what its guesses are learned from; benchmarks/make_log.py makes them."""

"""Config and sample to evaluation: what one configuration does, exact and timed."""

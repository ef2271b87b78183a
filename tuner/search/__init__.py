"""Evaluations to better configurations."""

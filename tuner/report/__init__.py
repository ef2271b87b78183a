"""Evaluations to what a person reads."""

"""The shipped search spaces and goals."""

"""Profile and frames to file: encode, write, repack."""

"""File to stack: any file a beamline has, read piece by piece."""

"""Trained weights: their names, where they lie on this machine, how they are read, saved and downloaded."""

"""Energies of discrete variables whose structure is known: chains of labels, factor graphs."""

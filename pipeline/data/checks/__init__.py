"""Checks of judged data before training: its size, its distributions, what looks odd and what cannot be used."""

"""Judges ranked lists: measures, their uncertainty, the report, and the gate that reads it."""

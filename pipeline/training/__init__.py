"""Training: one file for each stage, and one loop for all of them. See README.md in this folder."""

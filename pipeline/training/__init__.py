"""How models learn: one file for each stage, one loop for all of them."""

"""Sources, judgments, splits and candidates: from a team's own data to the pairs of training."""

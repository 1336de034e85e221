"""Sources, judgments, splits and candidates: from what a team has to what is learned from."""

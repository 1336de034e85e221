"""Click logs: their impressions, the position-based model of them, and the weak judgments that it gives."""

"""Trains, distils, judges and exports relevance models; every stage turns artifacts into one artifact."""

"""What leaves the project: the adapter or the merged model for use elsewhere, with its card, and the scores for TRL."""

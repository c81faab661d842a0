"""What a policy is worth, in numbers: on held-out pairs, and in what it says."""

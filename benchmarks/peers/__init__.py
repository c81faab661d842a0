"""The other sides of the comparison, each in a process of its own."""

"""Kills, damages and starves runs of the pipeline, and holds what becomes of them against a run that was left alone.

`python -m proof` (or `make proof`) prints what was done and what came of it. Nothing in the pipeline knows of this
package: faults are brought about from outside, or by wrapping what the operating system offers to a run.
"""

"""Ways to run the stages: a Prefect flow and a command."""

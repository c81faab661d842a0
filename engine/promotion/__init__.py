"""The gate before the model in service: rules over an evaluation, and the switch that follows from their verdict."""

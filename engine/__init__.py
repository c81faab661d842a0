"""What stages are made of. Imports neither tasks nor flows nor Prefect."""

"""The steps of a deploy, one Prefect task a file. No re-exports: they would hide the modules."""

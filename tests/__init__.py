"""Rules of the house, each tried on a real engine, a real nginx and a real Prefect server."""

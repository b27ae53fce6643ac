"""What the steps are about: Docker, nginx and the decisions. Imports neither Prefect nor flows."""

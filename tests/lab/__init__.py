"""What tests, demo and bench stand on: a Docker engine, images and visitors."""

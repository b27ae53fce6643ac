"""Pushes: who says so, whether it is proven, which apps wait for it, which runs it asks for."""

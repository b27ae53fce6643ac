"""How a deploy is entered and told."""

"""Places that need other people's packages: each is a script here; ``make places`` runs them."""

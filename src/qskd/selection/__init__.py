"""Which queries matter: matching and Group Query Selection."""

"""How data/demo was made: a small codec of the release's layout, whose encoder is withheld, and a speaker network."""

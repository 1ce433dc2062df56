"""How data/demo was made: a small release that speaks, whose encoder is withheld, and a speaker network."""

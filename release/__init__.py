"""Changes to a release on disk: an encoder put in and taken out, voices added, all of it or nothing."""

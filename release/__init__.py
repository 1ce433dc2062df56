"""Changes to a release on disk: injecting and removing an encoder, adding and removing voices, all or nothing."""

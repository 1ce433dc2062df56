"""Programs that produce the project's evidence. README.md in this folder says which one answers which question."""

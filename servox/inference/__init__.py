"""Generated from protos/inference by scripts/stubs.sh; never edited."""

"""Generated from protos/servox/v1 by scripts/stubs.sh; never edited."""

"""The evaluator: corpora, splits, protocols, statistics, reports. It talks to the others through their gRPC contracts."""

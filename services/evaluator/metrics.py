"""Every metric of the evaluator: name, unit, help."""

from prometheus_client import Counter, Gauge, Histogram

from servox.telemetry import Metrics


class EvaluatorMetrics:
    """Metrics of the evaluator in the registry of `metrics`. Labels are closed sets."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self.runs = Counter("servox_evaluator_runs", "Runs by how they ended.", ["state"], registry=registry)
        self.running = Gauge("servox_evaluator_running_runs", "Runs at work now.", registry=registry)
        self.clips = Counter(
            "servox_evaluator_clips",
            "Clips of a run: embedded now, found in the store, or failed.",
            ["outcome"],
            registry=registry,
        )
        self.cells = Counter(
            "servox_evaluator_cells", "Cells: computed now or found on disk.", ["outcome"], registry=registry
        )
        self.phase_seconds = Histogram(
            "servox_evaluator_phase_seconds",
            "How long each phase of a run took.",
            ["phase"],
            buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400),
            registry=registry,
        )
        self.score = Gauge(
            "servox_evaluator_last_macro_f1",
            "Macro-F1 of the last scored cell, mean over its seeds.",
            ["protocol", "head", "train", "test", "correction"],
            registry=registry,
        )

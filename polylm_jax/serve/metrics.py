"""What a server counts, for Prometheus: under vLLM's names where they exist, so that its dashboards
work here."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from polylm_jax.serve.calls import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = tuple(2**power for power in range(18))
# what became of a request; they sum up to those that were accepted
ENDS = {"stop": "stop", "length": "length", "cancelled": "abort", "failed": "error"}

TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counts of one server."""

    def __init__(self, name: str, engine: Engine) -> None:
        self._registry, self._name = CollectorRegistry(), name

        def histogram(called: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(called, what, ["model_name"], buckets=buckets, registry=self._registry)
            return made.labels(name)

        def counter(called: str, what: str, *labels: str) -> Counter:
            return Counter(called, what, ["model_name", *labels], registry=self._registry)

        self.accepted = counter("polylm:requests_accepted", "Choices that the engine took.")
        self.accepted = self.accepted.labels(name)
        self._ended = counter(
            "vllm:request_success", "Choices by how they ended.", "finished_reason"
        )
        for word in ENDS.values():
            self._ended.labels(name, word)
        self._refused = counter("polylm:requests_refused", "Requests by their status.", "status")
        self.first = histogram(
            "vllm:time_to_first_token_seconds", "Until the first token.", SECONDS
        )
        self.between = histogram("vllm:inter_token_latency_seconds", "Between tokens.", SECONDS)
        self.whole = histogram("vllm:e2e_request_latency_seconds", "Of whole requests.", SECONDS)
        self.prompt = histogram("vllm:request_prompt_tokens", "Of prompts.", TOKENS)
        self.new = histogram("vllm:request_generation_tokens", "Of answers.", TOKENS)
        self._registry.register(_Counts(name, engine))

    def ended(self, finish: str) -> None:
        """Counts a choice. finish: as in `News.ended`."""
        self._ended.labels(self._name, ENDS[finish]).inc()

    def refused(self, status: int) -> None:
        self._refused.labels(self._name, str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Counts:
    """What the engine counts itself, read when it is asked for."""

    def __init__(self, name: str, engine: Engine) -> None:
        self._name, self._engine = name, engine

    def collect(self) -> Iterator[Metric]:
        counts = self._engine.counts()
        for kind, name, what, value in (
            (GaugeMetricFamily, "vllm:num_requests_running", "In slots.", counts.running),
            (GaugeMetricFamily, "vllm:num_requests_waiting", "In the queue.", counts.waiting),
            (
                GaugeMetricFamily,
                "vllm:kv_cache_usage_perc",
                "Share of slots in use.",
                counts.running / counts.slots,
            ),
            (GaugeMetricFamily, "polylm:slots", "Slots of the cache.", counts.slots),
            (CounterMetricFamily, "vllm:prompt_tokens", "Of prompts.", counts.prompt_tokens),
            (CounterMetricFamily, "vllm:generation_tokens", "Added.", counts.new_tokens),
            (CounterMetricFamily, "vllm:prefix_cache_hits", "Reused.", counts.reused_tokens),
            (CounterMetricFamily, "vllm:prefix_cache_queries", "Asked.", counts.prompt_tokens),
            (CounterMetricFamily, "polylm:calls_cancelled", "Cancelled.", counts.cancelled),
            (CounterMetricFamily, "polylm:calls_failed", "Failed.", counts.failed),
            (CounterMetricFamily, "polylm:programs_compiled", "Compiled.", counts.compiled),
        ):
            metric = kind(name, what, labels=["model_name"])
            metric.add_metric([self._name], value)
            yield metric

    def describe(self) -> Iterator[Metric]:
        """Nothing, so that registering asks the engine nothing."""
        return iter(())

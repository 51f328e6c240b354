"""What a server counts, for Prometheus: under vLLM's names where they exist, so that its dashboards
work here."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from polylm_jax.serve.calls import Call, Engine, News

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = tuple(2**power for power in range(18))
# Of each choice: what is observed, what it says, and its buckets.
OBSERVED = {
    "time_to_first_token_seconds": ("Until the first token.", SECONDS),
    "inter_token_latency_seconds": ("Between tokens.", SECONDS),
    "request_time_per_output_token_seconds": ("The same, one mean a choice.", SECONDS),
    "e2e_request_latency_seconds": ("From the request to its end.", SECONDS),
    "request_queue_time_seconds": ("Until there was a slot.", SECONDS),
    "request_inference_time_seconds": ("From the slot to the end.", SECONDS),
    "request_prefill_time_seconds": ("From the slot to the first token.", SECONDS),
    "request_decode_time_seconds": ("From the first token to the last.", SECONDS),
    "request_prompt_tokens": ("Of prompts.", TOKENS),
    "request_generation_tokens": ("Of answers.", TOKENS),
    "request_params_max_tokens": ("Of answers, as many as were asked for.", TOKENS),
    "request_params_n": ("Choices of a prompt.", TOKENS[:8]),
}
# what became of a request; they sum up to those that were accepted
ENDS = {"stop": "stop", "length": "length", "cancelled": "abort", "failed": "error"}

TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counts of one server."""

    def __init__(self, name: str, engine: Engine) -> None:
        self._registry, self._name = CollectorRegistry(), name
        self._observed = {
            called: Histogram(
                f"vllm:{called}", what, ["model_name"], buckets=buckets, registry=self._registry
            ).labels(name)
            for called, (what, buckets) in OBSERVED.items()
        }

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
        self._registry.register(_Counts(name, engine))

    def observe(self, name: str, value: float) -> None:
        """Counts one value. name: in OBSERVED."""
        self._observed[name].observe(value)

    def ended(self, finish: str) -> None:
        """Counts a choice. finish: as in `News.ended`."""
        self._ended.labels(self._name, ENDS[finish]).inc()

    def refused(self, status: int) -> None:
        self._refused.labels(self._name, str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)


class Course:
    """One choice as time goes by, from when it is made."""

    def __init__(self, metrics: Metrics, call: Call, n: int) -> None:
        self._metrics, self._call, self._n = metrics, call, n
        self._asked = self._slot = self._first = self._last = time.monotonic()
        self._count = 0

    def heard(self, news: News) -> None:
        """Counts news of it as they come."""
        now, new, observe = time.monotonic(), len(news.new), self._metrics.observe
        if news.waited is not None:
            self._slot += news.waited
            observe("request_queue_time_seconds", news.waited)
        if not new:
            return
        if not self._count:
            self._first = now
            observe("time_to_first_token_seconds", now - self._asked)
            observe("request_prefill_time_seconds", now - self._slot)
        else:
            for _ in range(new):
                observe("inter_token_latency_seconds", (now - self._last) / new)
        self._last, self._count = now, self._count + new

    def ended(self, finish: str, tokens: int) -> None:
        """Counts its end. tokens: of the answer, those that came after its end left out."""
        self._metrics.ended(finish)
        if finish == "cancelled":
            return
        now, saying = time.monotonic(), self._last - self._first
        for name, value in {
            "e2e_request_latency_seconds": now - self._asked,
            "request_inference_time_seconds": now - self._slot,
            "request_decode_time_seconds": saying,
            "request_prompt_tokens": len(self._call.prompt),
            "request_generation_tokens": tokens,
            "request_params_max_tokens": self._call.new_tokens,
            "request_params_n": self._n,
        }.items():
            self._metrics.observe(name, value)
        if self._count > 1:
            mean = saying / (self._count - 1)
            self._metrics.observe("request_time_per_output_token_seconds", mean)


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
            (CounterMetricFamily, "vllm:num_preemptions", "A text keeps its slot.", 0),
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

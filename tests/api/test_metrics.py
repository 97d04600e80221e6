"""What Prometheus reads: the figures of the services, and the requests of the server."""

import math

import httpx
from prometheus_client.parser import text_string_to_metric_families


def test_metrics_are_those_of_prometheus(filled: httpx.Client) -> None:
    """In its format, with requests by the template of their route."""
    filled.get("/api/v1/data/AAPL/1d")
    filled.get("/nowhere/at/all")
    response = filled.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    samples = {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(response.text)
        for one in family.samples
    }
    by_name = {name for name, _ in samples}
    assert {"ktrdr_gaps", "ktrdr_permits_in_flight", "ktrdr_gateway_connected"} <= by_name
    scanned = ("ktrdr_gaps_scanned_timestamp_seconds", ()) in samples
    for name in ("ktrdr_gaps", "ktrdr_gap_bars"):  # nothing is said before the first scan
        assert math.isnan(samples[name, ()]) is not scanned
    assert samples["ktrdr_ib_requests_total", ()] >= 4
    assert samples["ktrdr_bars_received_total", ()] >= 6
    labels = {"method": "GET", "route": "/api/v1/data/{symbol}/{timeframe}", "status": "200"}
    assert samples["ktrdr_http_requests_total", tuple(sorted(labels.items()))] >= 1
    labels = {"method": "GET", "route": "(none)", "status": "404"}
    assert samples["ktrdr_http_requests_total", tuple(sorted(labels.items()))] == 1

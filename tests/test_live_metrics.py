"""What the server tells of itself: to Prometheus, and to OpenTelemetry."""

from __future__ import annotations

import gzip
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import fake_settings
from tests.gateway import Gateway, running_gateway

DASHBOARD = Path(__file__).parent.parent / "docs" / "grafana.json"
CANARY = "canaryinthecoalmine"


def test_what_happened_is_counted(tmp_path: Path) -> None:
    with running_gateway(tmp_path, fake_settings()) as gateway, gateway.client() as client:
        body = {"prompt": CANARY, "steps": 5}
        for _ in range(2):
            assert client.post("/generate", json=body).status_code == 200
        client.post("/generate", json={**body, "steps": -1})
        client.get(f"/{CANARY}")
        client.get(f"/jobs/{CANARY}?q={CANARY}")
        long = {"prompt": "x", "model": "lab/slow", "steps": 900}
        job = client.post("/jobs", json=long).json()["id"]
        waiting = client.post("/jobs", json={**body, "priority": "background"}).json()["id"]
        while not client.get(f"/jobs/{job}").json()["step"]:
            time.sleep(0.02)
        now = figures(client)
        assert now['easel_jobs_now{priority="interactive",state="running"}'] == 1
        assert now['easel_jobs_now{priority="background",state="waiting"}'] == 1
        for one in (job, waiting):
            client.delete(f"/jobs/{one}")
        told = figures(client)
        text = client.get("/metrics").text
    drawn = 'door="diffugen",model="fake",status="succeeded"'
    assert told[f"easel_jobs_total{{{drawn}}}"] == 2
    gone = 'door="jobs",model="lab/slow",status="cancelled"'
    assert told[f"easel_jobs_total{{{gone}}}"] == 1
    assert told['easel_queue_wait_seconds_count{priority="interactive"}'] == 3
    assert told['easel_batch_size_sum{model="fake"}'] == 10
    assert told['easel_phase_seconds_count{model="fake",phase="generating"}'] == 2
    assert told['easel_phase_seconds_sum{model="fake",phase="generating"}'] > 0.08
    assert told['easel_eta_error_ratio_count{model="fake"}'] == 2
    assert told['easel_model_loads_total{device="fake",model="fake"}'] == 1
    assert told['easel_model_resident{device="fake",in="device",model="lab/slow"}'] == 1
    assert told['easel_worker_up{device="fake"}'] == 1
    assert told['easel_http_requests_total{method="POST",route="/generate",status="200"}'] == 2
    assert told['easel_http_requests_total{method="POST",route="/generate",status="400"}'] == 1
    assert told['easel_http_requests_total{method="GET",route="/jobs/{job_id}",status="404"}'] == 1
    assert told["easel_event_loop_lag_seconds_count"] > 1
    assert told["easel_process_resident_memory_bytes"] > 1e7
    assert CANARY not in text


def test_workers_that_die_and_errors_are_counted(tmp_path: Path) -> None:
    with running_gateway(tmp_path, fake_settings()) as gateway, gateway.client() as client:
        body = {"prompt": "x", "model": "lab/slow", "steps": 900, "timeout": 1}
        assert client.post("/generate", json=body).status_code == 504
        [worker] = gateway.workers()
        worker.kill()
        gateway.wait_until_ready()
        told = figures(client)
    assert told['easel_job_errors_total{code="generation_timeout"}'] == 1
    assert told['easel_workers_lost_total{device="fake"}'] == 1


def test_a_trace_leads_from_the_request_to_the_step(tmp_path: Path) -> None:
    above = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with collector() as (url, spans):
        settings = {**fake_settings(), "EASEL_TRACES": url}
        with running_gateway(tmp_path, settings) as gateway:
            answer = httpx.post(
                f"{gateway.url}/v1/images/generations",
                json={"prompt": CANARY, "steps": 5, "model": "lab/slow"},
                headers={"traceparent": above},
                timeout=30,
            )
            assert answer.status_code == 200
    by_name = {span.name: span for span in spans}
    request, job = by_name["POST /v1/images/generations"], by_name["job"]
    assert request.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert (job.trace_id, job.parent_span_id) == (request.trace_id, request.span_id)
    for phase in ("queued", "loading_model", "generating", "post_processing"):
        assert by_name[phase].parent_span_id == job.span_id, phase
    steps = [
        event.attributes[0].value.int_value
        for event in by_name["generating"].events
        if event.name == "step"
    ]
    assert steps == [1, 2, 3, 4, 5]
    assert 0.15 < seconds(by_name["generating"]) <= seconds(job) <= seconds(request) + 0.1
    told = {one.key: one.value for one in job.attributes}
    assert told["easel.model"].string_value == "lab/slow"
    assert told["easel.status"].string_value == "succeeded"
    assert CANARY not in str(spans)


def test_a_collector_that_is_away_costs_nothing(tmp_path: Path) -> None:
    settings = {**fake_settings(), "EASEL_TRACES": "http://127.0.0.1:9"}
    with running_gateway(tmp_path, settings) as gateway, gateway.client() as client:
        begun = time.monotonic()
        assert client.post("/generate", json={"prompt": "x"}).status_code == 200
        assert time.monotonic() - begun < 5


def figures(client: httpx.Client) -> dict[str, float]:
    """Every sample, under its name and sorted labels."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def seconds(span: Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


@contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """Takes spans by OTLP over HTTP."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        server.server_close()


def test_the_dashboard_asks_for_what_there_is(fake_gateway: Gateway) -> None:
    asked = set(re.findall(r"easel_[a-z_]+", DASHBOARD.read_text()))
    with fake_gateway.client() as client:
        client.post("/generate", json={"prompt": "x"})
        text = client.get("/metrics").text
    there = set(re.findall(r"^# TYPE (easel_[a-z_]+)", text, re.MULTILINE))
    for name in asked:
        assert re.sub(r"_(bucket|sum|count)$", "", name) in there, name
    assert len(asked) > 15

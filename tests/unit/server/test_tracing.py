"""OpenTelemetry traces, as a collector receives them; none by default, and none with anything private."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

pytest.importorskip("starlette")
pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel")

from tests.serving import TEXT, TOKEN, image, open_served, running

NAME = "shelf00/item0001.png"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector(monkeypatch):
    """A collector on a free port, and what it has received."""
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield received
    server.shutdown()
    thread.join()
    server.server_close()


def spans_of(received):
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    assert {path for path, _ in received} == {"/v1/traces"}
    requests = [ExportTraceServiceRequest.FromString(body) for _, body in received]
    return [
        span
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def test_a_request_is_a_span_and_its_stages_are_within(tmp_path, collector):
    with running(open_served(tmp_path), traces=True, write_tokens=(TOKEN,)) as server:
        headers = [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("X-Request-Id", "mine")]
        headers.append(("Authorization", f"Bearer {TOKEN}"))
        status, _, _ = server.query([TEXT], [("reference_images", image(1))], headers=headers)
        assert status == 200 and server("GET", f"/v1/images/{NAME}?gallery=none", headers=headers[2:])[0] == 404
    server.services.tracing.close()
    spans = spans_of(collector)
    query, missing = (span for span in spans if span.kind == 2)  # servers'
    assert (query.name, missing.name) == ("POST /v1/query", "GET /v1/images/{id}")
    assert (query.trace_id.hex(), query.parent_span_id.hex()) == (TRACE, PARENT) and not missing.parent_span_id
    facts = {pair.key: pair.value.string_value or pair.value.int_value for pair in query.attributes}
    assert facts["http.response.status_code"] == 200 and facts["nsfse.request_id"] == "mine"
    assert {pair.key: pair.value.string_value for pair in missing.attributes}["error.type"] == "not_found"
    stages = [span for span in spans if span.parent_span_id == query.span_id]
    assert [span.name for span in stages] == ["decode", "queue", "image", "text", "stage1", "stage2"]
    ends = [query.start_time_unix_nano, *(span.end_time_unix_nano for span in stages)]
    assert [span.start_time_unix_nano for span in stages] == ends[:-1] and ends == sorted(ends)
    sent = b"".join(body for _, body in collector)
    for private in (b"red", b"item0001", TOKEN.encode(), b"127.0.0.1", str(tmp_path).encode()):
        assert private not in sent


def test_a_collector_that_is_gone_holds_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    with running(open_served(tmp_path), traces=True) as server:
        assert server.query([("reference_ids", NAME), TEXT])[0] == 200
    server.services.tracing.close()
    assert any(line["event"].startswith("opentelemetry") for line in server.lines)


def test_nothing_is_traced_by_default(tmp_path, collector):
    with running(open_served(tmp_path)) as server:
        assert server.query([("reference_ids", NAME), TEXT])[0] == 200
        assert server.services.tracing is None
    assert not collector

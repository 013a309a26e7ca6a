"""The other routes of `spotedit.serve`: models, metrics, health; keys and origins."""

from dataclasses import replace

import pytest
from serving import PATH, SETTINGS, application, client_of, error, form, picture, random_editor


@pytest.fixture(scope="module")
def editor():
    with pytest.MonkeyPatch.context() as monkeypatch:
        return random_editor(monkeypatch)


@pytest.fixture
def client(editor):
    with client_of(editor) as client:
        yield client


def samples(client) -> dict[str, float]:
    """Return what `GET /metrics` shows, by name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


def test_models_lists_the_served_one(client):
    answer = client.get("/v1/models").json()
    assert answer["object"] == "list"
    (model,) = answer["data"]
    assert model["id"] == "random"
    assert model["object"] == "model"


def test_health_and_readiness(client):
    assert client.get("/health").json() == {"status": "alive"}
    assert client.get("/ready").json() == {"status": "ready"}


def test_metrics_count_answers_and_what_the_edits_did(client, editor, monkeypatch):
    assert client.post(PATH, **form(n=2)).status_code == 200
    assert client.post(PATH, **form(prompt="")).status_code == 400
    assert client.get("/nowhere").status_code == 404
    monkeypatch.setattr(editor, "edit", None)  # so that a further edit fails
    with pytest.raises(TypeError):
        client.post(PATH, **form())
    monkeypatch.undo()
    shown = samples(client)
    assert shown[f"spotedit_requests_total {PATH} 200"] == 1
    assert shown[f"spotedit_requests_total {PATH} 400"] == 1
    assert shown[f"spotedit_requests_total {PATH} 500"] == 1
    assert shown["spotedit_requests_total other 404"] == 1
    assert shown["spotedit_edit_seconds_count"] == 2
    assert shown["spotedit_wait_seconds_count"] == 1
    assert shown["spotedit_queue_length"] == 0
    assert shown["spotedit_running"] == 0
    reports = [editor.edit(picture(), "add a hat", seed=seed).report for seed in (0, 1)]
    active = sum(step["active"] for report in reports for step in report.steps)
    total = sum(step["total"] for report in reports for step in report.steps)
    assert shown["spotedit_tokens_total computed"] == active
    assert shown["spotedit_tokens_total reused"] == total - active
    assert shown["spotedit_ratio_sum"] == pytest.approx(sum(r.mean_ratio for r in reports))
    assert shown["spotedit_unedited_edits_total"] == sum(r.unedited for r in reports)


def test_two_applications_have_metrics_of_their_own(client, editor):
    client.get("/health")
    with client_of(editor) as other:
        assert "spotedit_requests_total /health 200" not in samples(other)


def test_a_mounted_application_counts_its_own_paths(editor):
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    outer, inner = FastAPI(), application([editor])
    outer.mount("/edits", inner)
    TestClient(outer).get("/edits/v1/models")
    shown = inner.state.metrics.text().decode()
    assert 'spotedit_requests_total{path="/v1/models",status="200"} 1.0' in shown


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("POST", "/v1/models")])
def test_a_wrong_method_is_answered_in_the_hosted_form(client, method, path):
    assert error(client.request(method, path), 405)["type"] == "invalid_request_error"


def test_the_openapi_description_names_the_fields(client):
    content = client.get("/openapi.json").json()["paths"][PATH]["post"]["requestBody"]["content"]
    schema = content["multipart/form-data"]["schema"]
    assert {"image", "mask", "prompt", "seed", "mask_alpha"} <= schema["properties"].keys()
    assert set(schema["required"]) == {"image", "prompt"}


def test_no_page_of_the_server_loads_anything_from_elsewhere(client):
    for path in ("/docs", "/redoc"):
        error(client.get(path), 404)


# -- keys and origins


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"X-Api-Key": "secret"}],
)
def test_without_the_key_there_is_no_answer(editor, headers):
    with client_of(editor, replace(SETTINGS, api_key="secret")) as client:
        answer = client.post(PATH, **form(), headers=headers)
        assert error(answer, 401)["code"] == "invalid_api_key"
        assert "secret" not in answer.text
        error(client.get("/v1/models", headers=headers), 401)
        assert client.get("/health").status_code == 200


def test_with_the_key_there_is_one(editor):
    with client_of(editor, replace(SETTINGS, api_key="secret")) as client:
        headers = {"Authorization": "Bearer secret"}
        assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://example.org", "null", "http://testserver:9", "http://[x", ""]
)
def test_web_pages_of_other_sites_are_refused(client, origin):
    answer = client.post(PATH, headers={"Origin": origin})
    assert error(answer, 403)["code"] == "foreign_origin"
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:8000"])
def test_a_page_of_the_same_address_is_answered(client, host):
    headers = {"Origin": f"http://{host}", "Host": host}
    assert client.get("/v1/models", headers=headers).status_code == 200


def test_a_site_whose_name_means_this_machine_needs_the_key(client, editor):
    headers = {"Origin": "http://example.org", "Host": "example.org"}
    assert error(client.get("/v1/models", headers=headers), 403)["code"] == "foreign_origin"
    with client_of(editor, replace(SETTINGS, api_key="secret")) as client_with_key:
        headers |= {"Authorization": "Bearer secret"}
        assert client_with_key.get("/v1/models", headers=headers).status_code == 200

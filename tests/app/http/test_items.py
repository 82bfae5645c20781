"""The items of a model: found, and drawn as a map."""

import numpy as np


def test_items_are_found_by_a_part_of_their_name_in_any_case(client, bundle):
    answer = client.get(f"/models/{bundle.version}/items", params={"search": "K1", "limit": 3}).json()

    assert answer["total"] == 10
    assert [item["item_id"] for item in answer["items"]] == ["k10", "k11", "k12"]
    assert {item["domain"] for item in answer["items"]} == {"kitchen"}


def test_an_items_number_is_its_place_in_the_vocabulary(client, bundle):
    path = f"/models/{bundle.version}/items"
    found = client.get(path, params={"domain": "food", "item_id": ["f05", "f00", "none"]}).json()["items"]

    assert [bundle.vocabulary.external_id(item["number"] + 1) for item in found] == [("food", "f05"), ("food", "f00")]
    numbers = [item["number"] for item in found]
    assert client.get(path, params={"number": [*numbers, 60]}).json()["items"] == found


def test_items_of_no_domain_or_model_are_404(client, bundle):
    assert client.get(f"/models/{bundle.version}/items", params={"domain": "garden"}).status_code == 404
    assert client.get("/models/000000000000/items").status_code == 404
    assert client.get("/models/000000000000/map").status_code == 404


def test_the_map_has_a_point_for_every_item_and_is_made_once(client, bundle, tmp_path):
    path = f"/models/{bundle.version}/map"
    answer = client.get(path)
    points = np.frombuffer(answer.content, dtype="<f4").reshape(-1, 2)

    assert points.shape == (60, 2)
    assert np.abs(points).max() == 1
    (kept,) = (tmp_path / "data" / "maps").iterdir()
    kept_at = kept.stat().st_mtime_ns
    assert client.get(path).content == answer.content
    assert kept.stat().st_mtime_ns == kept_at
    again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")

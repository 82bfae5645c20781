"""Two API replicas and a worker as processes: what is activated under load reaches all of them, and nobody notices."""

from tests.chaos.activations import make_place, switch_under_load
from tests.chaos.cluster import Cluster
from tests.services import ServiceMissingError, reachable_folder, require


def test_activations_under_load_fail_no_request_mix_no_answer_and_reach_every_process():
    """`make chaos-activations` does a hundred, and asks that replicas agree within 5 s."""
    with reachable_folder() as folder:
        bundle, root, path = make_place(folder)
        settings = {"TAESAR_BUNDLE_ROOT": str(root)}
        try:
            with Cluster(folder / "cluster", bundle, path.parent, num_workers=1, num_apis=2, settings=settings) as up:
                found = switch_under_load(up, path, activations=8, num_clients=4, seed=7)
        except ServiceMissingError as error:
            require(error)

    assert found.wrong == []
    assert len(set(found.after_restart)) == 1
    assert found.worker_followed
    assert len(found.answers) > 1

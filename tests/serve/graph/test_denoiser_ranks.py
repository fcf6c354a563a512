"""A denoiser of two processes: if one dies or hangs, no job is lost, no video changes and no process stays behind."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from batch import REQUEST, Batch
from ray import serve
from ray.util import placement_group_table
from running_server import LEASE_S, Server, ray_process

from serve.app import AppArgs, build_app

REPLICA, OTHER = "ray::ServeReplica:ranks:Denoiser", "ray::Rank"
GONE_S = 30  # for Ray to end an actor after its owner, on a busy machine

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def url(server: Server, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real graph with a denoiser of two ranks, beside the application of ``server``."""
    folder = tmp_path_factory.mktemp("ranks")
    args = AppArgs(
        checkpoint=str(tiny_checkpoint), data_dir=str(folder), lease_s=LEASE_S, step_timeout_s=4, gpus_per_denoiser=2
    )
    serve.run(build_app(args), name="ranks", route_prefix="/ranks")
    yield f"{server.url}/ranks"
    other = ray_process(OTHER)
    serve.delete("ranks")
    other.wait(timeout=GONE_S)
    wait_for_reservations(0)


@pytest.fixture(scope="module", autouse=True)
def longer() -> Iterator[None]:
    """Requests during which a test can act."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REQUEST, "num_inference_steps", 150)
        yield


def made(url: str, jobs: int) -> list[bytes]:
    """Videos with sound, the second of which begins with a picture."""
    batch = Batch(url)
    batch.submit(jobs)
    assert all((record["status"], record["attempts"]) == ("completed", 1) for record in batch.finish())
    videos = batch.videos()
    batch.delete()
    return videos


@pytest.fixture(scope="module")
def of_one_process(server: Server) -> list[bytes]:
    return made(server.url, 2)


def others() -> list[psutil.Process]:
    """The processes of ranks other than 0."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if OTHER in " ".join(process.cmdline())]


def test_two_processes_make_the_files_of_one(url: str, of_one_process: list[bytes]) -> None:
    assert made(url, 2) == of_one_process


def wait_for_reservations(count: int) -> None:
    """Until so many placement groups hold GPUs or CPUs."""
    deadline = time.monotonic() + GONE_S
    while sum(group["state"] == "CREATED" for group in placement_group_table().values()) != count:
        assert time.monotonic() < deadline, placement_group_table()
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("victim", "fault"),
    [(1, psutil.Process.kill), (0, psutil.Process.kill), (1, psutil.Process.suspend)],
    ids=["rank 1 dies", "rank 0 dies", "rank 1 hangs"],
)
def test_all_ranks_end_with_one_of_them_and_the_request_is_retried(
    url: str,
    of_one_process: list[bytes],
    victim: int,
    fault: Callable[[psutil.Process], None],
    record_property: Callable[[str, object], None],
) -> None:
    ranks = [ray_process(REPLICA), ray_process(OTHER)]
    batch = Batch(url)
    batch.submit(1)
    batch.wait_for_step(0, 2)
    fault(ranks[victim])
    began = time.monotonic()
    psutil.wait_procs(ranks, timeout=GONE_S)
    ended_s = time.monotonic() - began
    assert not any(rank.is_running() for rank in ranks)
    (record,) = batch.finish()
    took_s = time.monotonic() - began
    assert (record["status"], record["attempts"]) == ("completed", 2)
    assert batch.videos() == of_one_process[:1]
    assert len(others()) == 1
    wait_for_reservations(1)
    batch.delete()
    record_property("fault", {"ranks ended s": round(ended_s, 1), "done after s": round(took_s, 1)})


def test_a_rank_that_dies_at_rest_takes_the_replica_with_it(url: str, of_one_process: list[bytes]) -> None:
    replica = ray_process(REPLICA)
    ray_process(OTHER).kill()
    replica.wait(timeout=60)
    batch = Batch(url)
    batch.submit(1)
    batch.finish()
    assert batch.videos() == of_one_process[:1]
    batch.delete()

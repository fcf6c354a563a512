"""The arithmetic of the graph's measurement."""

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.graph import Record, cost
from benchmarks.one_process import Case, OneProcess, summary
from benchmarks.peak import Peak, gpu_gib
from benchmarks.queue_times import covered, queue_times
from benchmarks.server import descendants
from cosmos3_models.approximations import Approximation
from serve.schema import VideoRequest


def test_time_that_several_cover_counts_once() -> None:
    assert covered((0, 10), [(-5, 1), (2, 5), (4, 6), (3, 4), (9, 20), (30, 40)]) == 1 + 4 + 1
    assert covered((0, 10), []) == 0


def test_a_queue_is_busy_but_for_its_gaps_and_decodes_beside_the_next_denoise() -> None:
    jobs = [
        {"created_at": 0, "started_at": 1, "completed_at": 8, "stage_durations": {"denoiser": 4, "decoders": 2}},
        {"created_at": 0, "started_at": 6, "completed_at": 13, "stage_durations": {"denoiser": 4, "decoders": 2}},
    ]
    assert queue_times(jobs) == {
        "wall_s": 13,
        "denoise_s": 8,
        "decode_s": 4,
        "busy_share": 8 / 9,
        "gap_s": 1,
        "overlap_s": 1,  # the first decode goes on for a second after the second denoise began
        "overlap_share": 1 / 4,
    }


def test_a_case_is_a_request_that_the_server_takes() -> None:
    case = Case.parse("480x832x49:35:3")
    assert (case.times, str(case), Case.parse("480x832x49:35").times) == (3, "480x832x49:35", 1)
    request = VideoRequest(**case.fields(True, Approximation(velocity_reuse=2), steps=2))
    assert (request.size, request.num_frames, request.num_inference_steps) == ("832x480", 49, 2)
    assert (request.negative_prompt, request.generate_sound, request.velocity_reuse) == (None, True, 2)


def test_a_row_is_the_median_run_and_its_cost_is_against_the_same_case() -> None:
    row = {"case": "a"} | summary([(3.0, {"denoiser": 1.0}, 10), (2.0, {"denoiser": 1.5}, 10), (9.0, {}, 10)])
    assert (row["wall_s"], row["least_s"], row["most_s"], row["denoiser_s"], row["other_s"]) == (3, 2, 9, 1, 2)
    assert cost(row, [{"case": "b", "wall_s": 1.0}, {"case": "a", "wall_s": 2.0}]) == {
        "more_ms": 1000,
        "more_percent": 50,
    }
    assert cost(row, []) == {}


def test_every_row_is_on_disk_at_once_without_what_was_not_measured(tmp_path: Path) -> None:
    record = Record(tmp_path / "graph.json")
    record.add("http", {"wall_s": 1.0, "gpu_gib": None})
    assert json.loads(record.out.read_text()) == {"results": [{"part": "http", "wall_s": 1.0}]}


def test_a_part_that_fails_is_a_row_and_the_next_one_goes_on(tmp_path: Path) -> None:
    record = Record(tmp_path / "graph.json")
    with record.trying("queue"):
        raise RuntimeError("job failed")
    assert record.rows == [{"part": "queue", "error": "RuntimeError: job failed"}]


def test_one_process_makes_a_video_of_the_same_stages(tiny_checkpoint: Path, tmp_path: Path) -> None:
    fields = {"prompt": "x", "size": "32x32", "num_frames": 5, "num_inference_steps": 1}
    stages = OneProcess(str(tiny_checkpoint), "cpu", Approximation(velocity_reuse=2))
    _, _, size = asyncio.run(stages.make(fields, tmp_path / "made.mp4"))
    assert size == (tmp_path / "made.mp4").stat().st_size > 0


def test_a_peak_is_the_largest_reading_since_the_beginning() -> None:
    readings = iter([5.0, 1.0, None, 3.0, 2.0])
    peak = Peak(lambda: next(readings))
    assert peak.most() == 5
    peak.begin()
    assert [peak.most(), peak.most(), peak.most(), peak.grown()] == [1, 3, 3, 2]


def test_a_process_that_another_started_is_found() -> None:
    with subprocess.Popen(["sleep", "9"]) as child:
        assert child.pid in descendants(os.getpid())
        child.kill()


def test_only_the_memory_of_gpus_that_may_be_used_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\ncase "$*" in *--id=1*) echo 2048;; *) printf "1024\\n2048\\n";; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_gib() == 3.0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpu_gib() == 2.0

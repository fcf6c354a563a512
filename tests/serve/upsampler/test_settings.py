"""``prompt_upsampler`` of deploy.yaml: refused with a reason before anything starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT
from pydantic import ValidationError

from serve.app import AppArgs, build_app
from serve.check import argument_problems, problems

GIVEN = {"base_url": "https://llm.example.com/v1/", "model": "m"}


def test_there_is_none_by_default() -> None:
    assert AppArgs().prompt_upsampler is None
    assert not AppArgs().model_settings("cpu").upsampler


def test_a_server_is_named_by_its_url_and_model() -> None:
    settings = AppArgs(prompt_upsampler=GIVEN).prompt_upsampler
    assert settings is not None
    assert (settings.base_url, settings.model, settings.key()) == ("https://llm.example.com/v1", "m", None)
    args = AppArgs(prompt_upsampler=GIVEN | {"max_concurrent": 3})
    assert args.model_settings("cpu").upsampler
    assert args.job_settings().max_upsampling == 3


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"base_url": "llm.example.com"}, "prompt_upsampler.base_url: expected http:// or https://, a host and a path"),
        ({"base_url": "https://a:secret@llm/v1"}, "prompt_upsampler.base_url: expected no user and no password"),
        ({"model": ""}, "prompt_upsampler.model: String should have at least 1 character"),
        ({"timeout_s": 0}, "prompt_upsampler.timeout_s: Input should be greater than 0"),
        ({"max_concurrent": 33}, "prompt_upsampler.max_concurrent: Input should be less than or equal to 32"),
        ({"api_key": "secret"}, "prompt_upsampler.api_key: Extra inputs are not permitted"),
        ({"api_key_file": "key"}, "prompt_upsampler.api_key_file: expected an absolute path or one from ~"),
        ({"sampling": {"messages": []}}, "prompt_upsampler.sampling: got ['messages'], expected settings of sampling"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_a_wrong_value_is_told_and_no_secret(wrong: dict[str, Any], told: str) -> None:
    (problem,) = argument_problems({"prompt_upsampler": GIVEN | wrong})
    assert problem.startswith(told)
    assert "secret" not in problem
    with pytest.raises(ValidationError):
        AppArgs(prompt_upsampler=GIVEN | wrong)


@pytest.mark.parametrize("content", ["", "two keys", "first\nsecond", None], ids=["empty", "space", "lines", "absent"])
def test_a_file_without_a_key_keeps_the_server_from_starting(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    args = {"device": "cpu", "prompt_upsampler": GIVEN | {"api_key_file": str(file)}}
    (problem,) = argument_problems(args)
    assert problem.startswith("prompt_upsampler.api_key_file: got ")
    assert "first" not in problem
    with pytest.raises(ValueError, match=r"prompt_upsampler\.api_key_file"):
        build_app(AppArgs(**args))


def test_the_stage_is_there_only_if_it_is_configured() -> None:
    upsampler = build_app(AppArgs(device="cpu", prompt_upsampler=GIVEN | {"max_concurrent": 5}))
    stages = upsampler._bound_deployment.init_args[0]
    assert stages.prompt_upsampler.handle._bound_deployment.name == "PromptUpsampler"
    assert stages.prompt_upsampler.handle._bound_deployment.max_ongoing_requests == 5
    assert not stages.prompt_upsampler.handle._bound_deployment.ray_actor_options["num_gpus"]
    assert build_app(AppArgs(device="cpu"))._bound_deployment.init_args[0].prompt_upsampler is None


def test_the_documented_settings_have_no_problem(tmp_path: Path) -> None:
    text = (ROOT / "docs/operate.md").read_text()
    (block,) = [part.partition("```")[0] for part in text.split("```yaml\n") if "prompt_upsampler" in part[:200]]
    (tmp_path / "key").write_text("k")
    example = yaml.safe_load(block.replace("/run/secrets/llm-key", str(tmp_path / "key")))
    config = yaml.safe_load((ROOT / "deploy.yaml").read_text())
    config["applications"][0]["args"] |= example
    assert problems(yaml.safe_dump(config)) == []

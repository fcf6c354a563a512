"""A checkpoint is read strictly: every surprise is one error that names the file and the tensor."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from cosmos3_models import CheckpointError, Cosmos3Pipeline, GenerationParams, InvalidInput
from cosmos3_models.checkpoint.folder import Checkpoint, checkpoint_name
from cosmos3_models.checkpoint.loading import (
    load_sound_decoder,
    load_transformer,
    load_video_decoder,
    load_video_encoder,
    weight_problems,
)
from cosmos3_models.checkpoint.tensor_files import TensorFiles
from cosmos3_models.params import GenerationDefaults
from cosmos3_models.text.prompt import PromptEncoder

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"
ADD_K = "layers.1.self_attn.add_k_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with one file per component."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("whole") / "whole", max_shard_size="1GB")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that the test may break."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def sharded(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def load_everything(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    load_transformer(checkpoint, CPU, torch.float32)
    load_video_decoder(checkpoint, CPU, torch.float32)
    if checkpoint.has_video_encoder:
        load_video_encoder(checkpoint, CPU, torch.float32)
    load_sound_decoder(checkpoint, CPU, torch.float32)


def check_everything(folder: Path) -> None:
    for error in weight_problems(Checkpoint.open(folder)):
        raise error


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; ``...`` removes one."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_one_file_and_shards_hold_the_same_weights(whole: Path, tiny_checkpoint: Path) -> None:
    one, many = (load_transformer(Checkpoint.open(path), CPU, torch.float32) for path in (whole, tiny_checkpoint))
    for (name, a), (_, b) in zip(one.named_parameters(), many.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_weights_are_frozen_and_cast(whole: Path) -> None:
    for load in (load_video_decoder, load_video_encoder):
        module: torch.nn.Module = load(Checkpoint.open(whole), CPU, torch.bfloat16)
        assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("needed", "load"),
    [
        ("transformer", load_transformer),
        ("vae", load_video_decoder),
        ("vae", load_video_encoder),
        ("sound_tokenizer", load_sound_decoder),
    ],
)
def test_a_part_opens_the_weights_of_no_other(folder: Path, needed: str, load: Callable[..., object]) -> None:
    for component in {"transformer", "vae", "sound_tokenizer"} - {needed}:
        (folder / component / WEIGHTS).write_bytes(b"not weights")
    load(Checkpoint.open(folder), CPU, torch.float32)


def test_tensors_that_generation_does_not_use_may_be_absent(folder: Path) -> None:
    unused = ("lm_head", "norm.", "action_", "layers.2.mlp.", "layers.2.self_attn.to_q", "layers.2.self_attn.to_out")
    edit_tensors(
        folder / "transformer" / WEIGHTS,
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(unused)],
    )
    load_everything(folder)


def remove(file: Path, *starts: str) -> None:
    edit_tensors(file, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(starts)])


@pytest.mark.parametrize("starts", [("encoder.",), ("encoder.", "quant_conv.")], ids=str)
def test_a_checkpoint_may_come_without_the_video_encoder(folder: Path, starts: tuple[str, ...]) -> None:
    assert Checkpoint.open(folder).has_video_encoder
    remove(folder / "vae" / WEIGHTS, *starts)
    checkpoint = Checkpoint.open(folder)
    assert not checkpoint.has_video_encoder
    load_everything(folder)
    check_everything(folder)
    with pytest.raises(CheckpointError, match="vae: no tensor of an encoder, so there is no video encoder"):
        load_video_encoder(checkpoint, CPU, torch.float32)


def test_the_encoder_is_found_in_any_shard(sharded: Path) -> None:
    assert len(list((sharded / "vae").glob("*.safetensors"))) > 2
    assert Checkpoint.open(sharded).has_video_encoder
    for file in (sharded / "vae").glob("*.safetensors"):
        remove(file, "encoder.")
    assert not Checkpoint.open(sharded).has_video_encoder


def test_the_encoder_needs_no_tensor_of_the_decoder(folder: Path) -> None:
    remove(folder / "vae" / WEIGHTS, "decoder.", "post_quant_conv.")
    load_video_encoder(Checkpoint.open(folder), CPU, torch.float32)


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda f: shutil.rmtree(f), "copy: no such folder"),
        (lambda f: shutil.rmtree(f / "transformer"), r"transformer/config\.json: the file is missing"),
        (lambda f: shutil.rmtree(f / "scheduler"), r"scheduler_config\.json: the file is missing"),
        (lambda f: (f / "vae" / "config.json").write_text("{"), r"vae/config\.json: not readable as JSON"),
        (lambda f: (f / "vae" / "config.json").write_text("[]"), r"vae/config\.json: got a JSON list, expected an obj"),
        (lambda f: (f / "vae" / WEIGHTS).unlink(), "vae: no safetensors file"),
        (lambda f: (f / "vae" / WEIGHTS).write_bytes(b""), rf"vae/{WEIGHTS}: not a whole safetensors file"),
        (lambda f: (f / "vae" / WEIGHTS).write_bytes(b"x" * 99), rf"vae/{WEIGHTS}: not a whole safetensors file"),
        (
            lambda f: (f / "vae" / WEIGHTS).write_bytes((f / "vae" / WEIGHTS).read_bytes()[:-10]),
            rf"vae/{WEIGHTS}: not a whole safetensors file",
        ),
        (
            lambda f: edit_tensors(f / "transformer" / WEIGHTS, lambda t: t.pop("layers.1.mlp_moe_gen.up_proj.weight")),
            r"transformer: missing tensor layers\.1\.mlp_moe_gen\.up_proj\.weight$",
        ),
        (
            lambda f: edit_tensors(f / "transformer" / WEIGHTS, lambda t: t.update({"extra.weight": torch.ones(1)})),
            rf"transformer/{WEIGHTS}: unexpected tensor extra\.weight",
        ),
        (
            lambda f: edit_tensors(f / "vae" / WEIGHTS, lambda t: t.update({"decoder.conv_in.bias": torch.ones(7)})),
            rf"vae/{WEIGHTS}: tensor decoder\.conv_in\.bias: got shape \[7\], expected \[48\]",
        ),
        (
            lambda f: edit_tensors(f / "vae" / WEIGHTS, lambda t: t.pop("encoder.mid_block.attentions.0.to_qkv.bias")),
            r"vae: missing tensor encoder\.mid_block\.attentions\.0\.to_qkv\.bias$",
        ),
        (
            lambda f: edit_tensors(f / "vae" / WEIGHTS, lambda t: t.pop("quant_conv.weight")),
            r"vae: missing tensor quant_conv\.weight$",
        ),
        (
            lambda f: edit_tensors(f / "vae" / WEIGHTS, lambda t: t.update({"quant_conv.bias": torch.ones(8)})),
            rf"vae/{WEIGHTS}: tensor quant_conv\.bias: got shape \[8\], expected \[16\]",
        ),
        (
            lambda f: edit_tensors(f / "vae" / WEIGHTS, lambda t: t.update({"encoder.extra": torch.ones(8)})),
            rf"vae/{WEIGHTS}: unexpected tensor encoder\.extra",
        ),
        (
            lambda f: edit_tensors(f / "transformer" / WEIGHTS, lambda t: t.update({ADD_K: torch.ones(33, 64)})),
            rf"transformer/{WEIGHTS}: tensor {ADD_K}: got shape \[33, 64\], expected \[32, 64\]",
        ),
        (
            lambda f: edit_tensors(f / "sound_tokenizer" / WEIGHTS, lambda t: t.pop("decoder.conv1.weight_g")),
            r"tensor decoder\.conv1\.weight_v has no counterpart",
        ),
        (
            lambda f: edit(f / "generation_config.json", steps=3),
            r"generation_config\.json: steps: got 3, expected: Extra inputs",
        ),
    ],
)
@pytest.mark.parametrize("read", [load_everything, check_everything])
def test_a_broken_checkpoint_is_refused_with_the_file_at_fault(
    folder: Path, break_it: Callable[[Path], object], told: str, read: Callable[[Path], None]
) -> None:
    (folder / "generation_config.json").write_text("{}")
    break_it(folder)
    with pytest.raises(CheckpointError, match=told):
        read(folder)


def test_a_check_reads_no_tensor(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(TensorFiles, "read", read)
    check_everything(tiny_checkpoint)
    with pytest.raises(AssertionError):
        load_everything(tiny_checkpoint)


UP = "layers.1.mlp_moe_gen.up_proj.weight"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int64, "I64"),
        (torch.bool, "BOOL"),
        (torch.float64, "F64"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
    ],
)
def test_quantised_and_double_weights_are_refused_by_name(folder: Path, kind: torch.dtype, told: str) -> None:
    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP] = tensors[UP].to(kind)
        tensors[f"{UP}_scale"] = torch.ones(1)

    edit_tensors(folder / "transformer" / WEIGHTS, quantise)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: tensor {UP}: got numbers of type {told}, expected F32, "):
        load_everything(folder)


def test_a_weight_norms_part_of_another_type_is_refused(folder: Path) -> None:
    name = "decoder.conv1.weight_g"
    edit_tensors(folder / "sound_tokenizer" / WEIGHTS, lambda t: t.update({name: t[name].to(torch.int8)}))
    with pytest.raises(CheckpointError, match=r"decoder\.conv1\.weight: got numbers of type I8"):
        load_everything(folder)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_other_plain_types_are_cast(folder: Path, kind: torch.dtype) -> None:
    edit_tensors(folder / "transformer" / WEIGHTS, lambda t: t.update({UP: t[UP].to(kind)}))
    load_everything(folder)


def test_tensors_that_generation_does_not_use_may_have_any_type(folder: Path) -> None:
    edit_tensors(
        folder / "transformer" / WEIGHTS, lambda t: t.update({"lm_head.weight": torch.ones(2, dtype=torch.int8)})
    )
    load_everything(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


@pytest.mark.parametrize(
    "file",
    [
        "transformer/config.json",
        "scheduler/scheduler_config.json",
        "sound_tokenizer/config.json",
        "generation_config.json",
        f"transformer/{WEIGHTS}",
        f"vae/{WEIGHTS}",
        f"sound_tokenizer/{WEIGHTS}",
        f"vae/{WEIGHTS}.index.json",
        "text_tokenizer/tokenizer.json",
        "text_tokenizer/tokenizer_config.json",
        "text_tokenizer/chat_template.jinja",
        "assets/negative_prompt.json",
        "assets/prompt_guide.json",
    ],
)
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.write_text(POINTER), "got a Git LFS pointer, expected the file itself: run `git lfs pull`"),
        (lambda path: path.symlink_to("../../blobs/4d7a"), r"the link leads to \.\./\.\./blobs/4d7a"),
    ],
    ids=["pointer", "broken link"],
)
def test_a_stand_in_for_a_file_is_refused(folder: Path, file: str, spoil: Callable[[Path], object], told: str) -> None:
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    spoil(path)
    with pytest.raises(CheckpointError, match=f"{Path(file).name}: .*{told}"):
        load_everything(folder)
        PromptEncoder.from_checkpoint(folder)


def test_a_download_that_did_not_finish_is_named(folder: Path) -> None:
    (folder / "transformer" / WEIGHTS).rename(folder / "transformer" / f"{WEIGHTS}.incomplete")
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}\.incomplete: the download of this file did not finish"):
        load_everything(folder)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("demo", "cosmos3-demo"),
        ("/models/Cosmos3-Nano", "Cosmos3-Nano"),
        ("/models/Cosmos3-Nano/", "Cosmos3-Nano"),
        ("/models/x/../Cosmos3-Nano/.", "Cosmos3-Nano"),
        ("~/Cosmos3-Nano", "Cosmos3-Nano"),
        ("/models/ночь 夜 2", "ночь 夜 2"),
        (f"/cache/hub/models--nvidia--Cosmos3-Nano/snapshots/{'0a1b' * 10}", "nvidia/Cosmos3-Nano"),
        (f"/cache/hub/models--cosmos3/snapshots/{'0a1b' * 10}", "cosmos3"),
        ("/models/snapshots/Cosmos3-Nano", "Cosmos3-Nano"),
    ],
)
def test_a_checkpoint_has_the_name_that_its_path_was_given(path: str, name: str) -> None:
    assert checkpoint_name(path) == name


def test_a_link_has_its_own_name_and_not_that_of_what_it_leads_to(whole: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--nvidia--Cosmos3-Nano" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(whole)
    (tmp_path / "nano").symlink_to(snapshot)
    assert Checkpoint.open(snapshot).name == "nvidia/Cosmos3-Nano"
    assert Checkpoint.open(tmp_path / "nano").name == "nano"


def test_a_path_may_be_relative_or_begin_at_home(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(whole.parent))
    assert Checkpoint.open(f"~/{whole.name}").folder == whole
    monkeypatch.chdir(whole.parent)
    opened = Checkpoint.open(whole.name)
    monkeypatch.chdir(tmp_path)
    assert opened.folder == whole and opened.name == whole.name
    monkeypatch.chdir(whole)
    assert Checkpoint.open(".").name == whole.name


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted((sharded / "transformer").glob("*.safetensors"))[2]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}: the file is missing"):
        load_everything(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    first, second, *_ = sorted((sharded / "transformer").glob("*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    edit_tensors(second, lambda tensors: tensors.update({name: tensor}))
    with pytest.raises(CheckpointError, match=f"{second.name}: tensor {name} is also in {first.name}"):
        load_everything(sharded)


@pytest.mark.parametrize(
    ("shard", "told"),
    [("diffusion_pytorch_model-00002-of-00002.safetensors", "does not hold it"), ("../x", "a file of this folder")],
)
def test_an_index_that_lies_is_refused(sharded: Path, shard: str, told: str) -> None:
    index = sharded / "sound_tokenizer" / "diffusion_pytorch_model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    first = next(name for name, file in names.items() if "00001" in file)
    edit(index, weight_map=names | {first: shard})
    with pytest.raises(CheckpointError, match=told):
        load_everything(sharded)


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("transformer/config.json", {"hidden_size": ...}, "hidden_size Field required"),
        ("transformer/config.json", {"hidden_size": "wide"}, "hidden_size: got 'wide', expected: .*valid integer"),
        ("transformer/config.json", {"hidden_act": "relu2"}, "hidden_act: got 'relu2', expected: .*'silu'"),
        ("transformer/config.json", {"video_temporal_causal": True}, "video_temporal_causal: got True"),
        ("transformer/config.json", {"patch_latent_dim": 33}, "patch_latent_dim is 33, expected 32"),
        ("transformer/config.json", {"num_key_value_heads": 3}, "is 1, expected 0"),
        ("transformer/config.json", {"head_dim": 32}, "sum of the rope sections is 8, expected 16"),
        ("transformer/config.json", {"sound_dim": None}, "sound_dim or sound_latent_fps is missing"),
        ("transformer/config.json", {"sound_dim": 5}, "vocoder_input_dim is 4, but transformer sound_dim is 5"),
        ("transformer/config.json", {"sound_latent_fps": 50}, r"per second is 25\.0, but .* is 50"),
        ("transformer/config.json", {"latent_channel": 9, "patch_latent_dim": 36}, "z_dim is 8, but .* is 9"),
        ("vae/config.json", {"latents_mean": [0.0]}, "length of latents_mean is 1, expected 8"),
        ("vae/config.json", {"latents_std": [0.0] * 8}, "latents_std.0: got 0.0, expected: .*greater than 0"),
        ("vae/config.json", {"scale_factor_spatial": 8}, "scale_factor_spatial: got 8"),
        ("vae/config.json", {"patch_size": 1, "out_channels": 3}, "pixels per latent is 8, expected 16"),
        ("vae/config.json", {"out_channels": 3}, "out_channels is 3, expected 12"),
        ("vae/config.json", {"in_channels": 3}, "in_channels is 3, expected 12"),
        ("vae/config.json", {"base_dim": ...}, "base_dim Field required"),
        ("vae/config.json", {"base_dim": 0}, "base_dim: got 0, expected: .*greater than 0"),
        ("vae/config.json", {"is_residual": False}, "is_residual: got False"),
        ("sound_tokenizer/config.json", {"dec_strides": [2]}, "length of dec_strides is 1, expected 5"),
        ("sound_tokenizer/config.json", {"activation": "elu"}, "activation: got 'elu'"),
        ("scheduler/scheduler_config.json", {"solver_order": 3}, "solver_order: got 3"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "prediction_type: got 'epsilon'"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(folder: Path, file: str, changes: dict[str, Any], told: str) -> None:
    edit(folder / file, **changes)
    with pytest.raises(CheckpointError, match=told):
        Checkpoint.open(folder)


def test_rope_sections_are_found_in_old_and_new_files(folder: Path) -> None:
    config = folder / "transformer" / "config.json"
    edit(config, rope_axes_dim=...)
    assert Checkpoint.open(folder).transformer.rope_sections == (4, 2, 2)
    edit(config, rope_axes_dim=[4, 2, 2], rope_scaling=...)
    assert Checkpoint.open(folder).transformer.rope_sections == (4, 2, 2)


def test_without_a_sound_tokenizer_videos_are_made_and_sound_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "sound_tokenizer")
    pipeline = Cosmos3Pipeline.from_pretrained(folder, "cpu")
    params = GenerationParams(prompt="x", height=32, width=32, num_frames=1, num_inference_steps=1)
    assert pipeline(params).frames.shape == (1, 32, 32, 3)
    with pytest.raises(InvalidInput, match=r"^generate_sound: got True, expected false, because .* no sound decoder"):
        pipeline(params.model_copy(update={"generate_sound": True}))


def test_a_folder_may_bring_its_own_defaults(folder: Path) -> None:
    assert Checkpoint.open(folder).defaults.params(prompt="x") == GenerationParams(prompt="x")
    (folder / "generation_config.json").write_text('{"height": 64, "width": 96, "fps": 12}')
    params = Checkpoint.open(folder).defaults.params(prompt="x")
    assert (params.height, params.width, params.fps, params.num_frames) == (64, 96, 12.0, 189)


def test_how_the_reasoner_writes_text_is_no_default_of_a_video(folder: Path) -> None:
    config = GenerationConfig(do_sample=True, temperature=0.7, top_k=20, eos_token_id=151645, pad_token_id=151643)
    config.save_pretrained(folder)
    assert (folder / "generation_config.json").exists()
    assert Checkpoint.open(folder).defaults == GenerationDefaults()

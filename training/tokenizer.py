"""Build the demo's tokenizer: a small byte-level BPE with Qwen's special tokens, from the caption grammar.

python -m training.tokenizer --out .gpu/demo
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from cosmos3_models.params import GenerationParams
from cosmos3_models.text.metadata import with_metadata
from cosmos3_models.text.prompt import DEFAULT_NEGATIVE, PromptEncoder
from training.captions import write_caption
from training.labels import draw_labels
from training.recipe import Recipe

FOLDER = "text_tokenizer"
ASSETS = "assets"
NEGATIVE = {"caption": ""}  # the demo's default negative prompt: it stands for any video
CAPTIONS = 20_000
IMAGES = 10  # captions of clips for one of an image
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# A word with the space before it, one digit, a run of signs, or white space.
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"


def build(recipe: Recipe, seed: int = 0, captions: int = CAPTIONS) -> Tokenizer:
    """Train the vocabulary on captions, the sentences about length and size, and the negative prompts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.transformer.vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(recipe, seed, captions), trainer)
    return tokenizer


def write(recipe: Recipe, out: Path, tokenizer: Tokenizer) -> PromptEncoder:
    """Write the tokenizer and the negative prompt in the public layout; returns them as serving reads them."""
    for folder in (FOLDER, ASSETS):
        (out / folder).mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / FOLDER / "tokenizer.json"))
    config = json.dumps(recipe.data["text_tokenizer"], indent=2) + "\n"
    (out / FOLDER / "tokenizer_config.json").write_text(config)
    (out / ASSETS / "negative_prompt.json").write_text(json.dumps(NEGATIVE, indent=2) + "\n")
    return PromptEncoder.from_checkpoint(out)


def described(caption: str, params: GenerationParams) -> str:
    """The caption with the sentences that serving appends."""
    return with_metadata(
        caption, num_frames=params.num_frames, fps=params.fps, height=params.height, width=params.width
    )


def _texts(recipe: Recipe, seed: int, captions: int) -> Iterator[str]:
    random = np.random.default_rng(seed)
    labels = draw_labels(random, captions)
    image = recipe.generation.model_copy(update={"num_frames": 1})
    for scene in range(captions):
        yield described(write_caption(labels, scene, random), recipe.generation)
        if scene % IMAGES == 0:
            yield described(write_caption(labels, scene, random, still=True), image)
    yield from ("user", "assistant", json.dumps(NEGATIVE)) * 100  # as frequent as words, for every prompt has them
    yield DEFAULT_NEGATIVE.read_text()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the whole demo")
    parser.add_argument("--recipe", type=Path, default=None, help="configs of the models")
    parser.add_argument("--seed", type=int, default=0, help="of the captions (%(default)s)")
    parser.add_argument("--captions", type=int, default=CAPTIONS, help="how many to read (%(default)s)")
    args = parser.parse_args(arguments)
    recipe = Recipe.read(args.recipe) if args.recipe else Recipe.read()
    write(recipe, args.out, build(recipe, args.seed, args.captions))


if __name__ == "__main__":
    main()

#!/usr/bin/env bash
# Trains every part and writes the checkpoint, on one GPU:  training/all.sh OUT CHECKPOINT
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1 checkpoint=$2
mkdir -p "$out"

python3 -m training.tokenizer --out "$out"
python3 -m training.sound_autoencoder --out "$out" >"$out/sound.log" 2>&1 &
sound=$!
python3 -m training.video_vae --out "$out" 2>&1 | tee "$out/video.log"
wait "$sound"
python3 -m training.latents --out "$out" 2>&1 | tee "$out/latents.log"
python3 -m training.transformer --out "$out" --compile 2>&1 | tee "$out/transformer.log"
python3 -m training.export --out "$out" --to "$checkpoint"

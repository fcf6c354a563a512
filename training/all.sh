#!/usr/bin/env bash
# Trains every part and writes the checkpoint, on one GPU:  training/all.sh OUT CHECKPOINT [OPTION OF THE TRANSFORMER...]
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1 checkpoint=$2
shift 2
mkdir -p "$out"

python3 -m training.tokenizer --out "$out"
python3 -m training.sound_autoencoder --out "$out" >"$out/sound.log" 2>&1 &
sound=$!
python3 -m training.video_vae --out "$out" 2>&1 | tee "$out/video.log"
wait "$sound"
python3 -m training.latents --out "$out" 2>&1 | tee "$out/latents.log"
transformer() { python3 -m training.transformer --out "$out" --compile "$@" 2>&1 | tee -a "$out/transformer.log"; }
for step in 9500 20000 100000; do # three runs of one schedule, each of less than ten minutes on an H100
  transformer "$@" --stop-at "$step"
done
python3 -m training.export --out "$out" --to "$checkpoint"

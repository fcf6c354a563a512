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
for stop in 7500 100000; do # two runs of one schedule, each of less than ten minutes on an H100
    python3 -m training.transformer --out "$out" --compile --stop-at "$stop" "$@" 2>&1 | tee -a "$out/transformer.log"
done
python3 -m training.export --out "$out" --to "$checkpoint"

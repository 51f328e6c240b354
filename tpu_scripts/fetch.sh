#!/usr/bin/env bash
# Copy a run's folder here: checkpoints, metrics and figures.
#   tpu_scripts/fetch.sh --name=polylm --folder=gs://BUCKET/runs/x [--to=runs/x] [--project=P]
#   tpu_scripts/fetch.sh --name=polylm --folder=runs/x [--to=runs/x] [--slices=N] [--zone=Z]
# A folder without gs:// lies on worker 0, of the first slice, in ~/polylm_jax.
set -euo pipefail
knows="--name= --folder= --to= --slices= --zone= --project="
# shellcheck source=common.sh source-path=SCRIPTDIR
source "$(dirname "$0")/common.sh"
[[ -n $folder ]] || stop "say what to fetch with --folder=FOLDER, the run's train.folder."
[[ $folder != *://* || $folder == gs://* ]] ||
  stop "fetches from gs:// and from worker 0 only, not from $folder."
to=${to:-runs/$(basename "$folder")}

run mkdir -p "$to"
if [[ $folder == gs://* ]]; then
  run gcloud storage rsync --recursive "$folder" "$to" ${project:+--project="$project"}
else
  [[ $folder == /* ]] || folder="polylm_jax/$folder"
  tpus tpu-vm scp --recurse "${nodes[0]}:$folder/*" "$to" --worker=0
fi
[[ $dry_run == true ]] || echo "The run is in $to; \`polylm report --run=$to\` shows it."

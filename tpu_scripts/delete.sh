#!/usr/bin/env bash
# Give a slice back, or all of a request, with everything on their disks, whatever state it is in:
#   tpu_scripts/delete.sh --name=polylm [--zone=Z] [--project=P]
set -euo pipefail
knows="--name= --zone= --project="
# shellcheck source=common.sh source-path=SCRIPTDIR
source "$(dirname "$0")/common.sh"

# without --force a request is only deleted once its machines are gone
tpus queued-resources delete "$name" --force --quiet ||
  stop "gcloud did not delete $name, which may still cost money; it says why above."
[[ $dry_run == true ]] || echo "$name is deleted."

#!/usr/bin/env bash
# Follow the log of worker 0, which speaks for all; leave with Ctrl-C, the run goes on:
#   tpu_scripts/watch.sh --name=polylm [--slices=N] [--zone=Z] [--project=P]
set -euo pipefail
knows="--name= --slices= --zone= --project="
# shellcheck source=common.sh source-path=SCRIPTDIR
source "$(dirname "$0")/common.sh"

# -F waits for a log that is not there yet
on_first 'tail -n 100 -F ~/polylm.log'

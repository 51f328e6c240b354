#!/usr/bin/env bash
# Start `polylm train` on every worker of all slices; it goes on when this terminal closes:
#   tpu_scripts/launch.sh --name=polylm [--slices=N] --gin_file=FILE [--gin.NAME=VALUE …]
#     [--zone=Z] [--project=P]
# The settings and what is committed are checked here first; --unchecked goes without.
# The log is ~/polylm.log on each worker; ~/polylm.exit is the exit status, once the run has ended.
# It is stopped by SIGTERM, upon which it saves (stop run.sh first, which would start it again); of
# several slices one is enough, as polylm-0:
#   gcloud compute tpus tpu-vm ssh polylm --worker=all --command='kill "$(cat ~/polylm.pid)"'
set -euo pipefail
here=$(dirname "$0")
knows="--name= --slices= --gin_file= --gin.NAME= --unchecked --zone= --project="
# shellcheck source=common.sh source-path=SCRIPTDIR
source "$here/common.sh"
# shellcheck source=check.sh source-path=SCRIPTDIR
source "$here/check.sh"
needs_gin_file
if [[ $unchecked == false ]]; then
  check_settings
  check_commit
  check_places say
fi

# quoted once more, because the worker's shell takes one layer off
printf -v arguments ' %q' "${arguments[@]}"

# two runs would fight for the chips, so a second launch is refused
on_all_workers "cd ~/polylm_jax || exit 1
if kill -0 \"\$(cat ~/polylm.pid 2>/dev/null)\" 2>/dev/null; then
  echo \"\$(hostname) is training already: see ~/polylm.log\" >&2
  exit 1
fi
rm -f ~/polylm.exit
{
  nohup .venv/bin/polylm train$arguments &
  echo \$! >~/polylm.pid
  wait \$!
  echo \$? >~/polylm.exit
} >>~/polylm.log 2>&1 </dev/null &"
[[ $dry_run == true ]] || echo "$name is training; look on with tpu_scripts/watch.sh $these"

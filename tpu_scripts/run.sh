#!/usr/bin/env bash
# A whole run on a slice that may be taken away: asks for it, sets it up, launches, and looks on;
# when the slice is preempted it is asked for again and the run goes on from its last checkpoint:
#   tpu_scripts/run.sh --name=polylm --type=v5p-128 [--spot | --reserved] [--tokenizer=FILE.model]
#     --gin_file=FILE [--gin.NAME=VALUE …] [--zone=Z] [--project=P]
# The rows and train.folder must be where every slice finds them again. This script may be stopped
# at any time, and the same command takes over. A finished run's slice is deleted.
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=common.sh source-path=SCRIPTDIR
source "$here/common.sh"
[[ -n $type ]] || stop "say which slice with --type=TYPE, for example --type=v5p-128."
[[ " ${others[*]-}" == *" --gin_file="* ]] || stop "say what to train with --gin_file=FILE."

machine=("--name=$name" ${zone:+--zone="$zone"} ${project:+--project="$project"})
request=("${machine[@]}" "--type=$type")
ready=("${machine[@]}" ${tokenizer:+--tokenizer="$tokenizer"})
[[ $spot == false ]] || request+=(--spot)
[[ $reserved == false ]] || request+=(--reserved)

if [[ $dry_run == true ]]; then
  "$here/create.sh" "${request[@]}" --dry_run
  "$here/setup.sh" "${ready[@]}" --dry_run
  "$here/launch.sh" "${machine[@]}" "${others[@]}" --dry_run
  "$here/delete.sh" "${machine[@]}" --dry_run
  exit
fi

slice_state() {
  tpus queued-resources describe "$name" --format="value(state.state)" 2>/dev/null || echo GONE
}

# Exit status of the run on worker 0, "running", or "none" where nothing was launched; empty where
# the worker does not answer. The worker expands what is in single quotes.
# shellcheck disable=SC2016
run_state() {
  tpus tpu-vm ssh "$name" --worker=0 --command='
if kill -0 "$(cat ~/polylm.pid 2>/dev/null)" 2>/dev/null; then echo running
elif [ -f ~/polylm.exit ]; then cat ~/polylm.exit
else echo none; fi' 2>/dev/null || true
}

# half of a pod may still hold the chips
# shellcheck disable=SC2016
end_all() { on_all_workers 'kill "$(cat ~/polylm.pid)" 2>/dev/null; sleep 1; true' || true; }

failed() {
  failures=$((failures + 1))
  if ((failures == 3)); then
    tpus tpu-vm ssh "$name" --worker=0 --command='tail -n 20 ~/polylm.log' >&2 || true
    stop "$1 3 times (its last lines are above); $name still costs money: mend it and run the" \
      "same command, or run delete.sh --name=$name."
  fi
  say "$1; once more."
}

failures=0 # to run, since it last ran for 30 looks
steady=0   # looks in a row at which it ran
silent=0   # looks in a row at which worker 0 did not answer
lost=0     # requests in a row that came to nothing
while true; do
  case $(slice_state) in
    ACTIVE)
      lost=0
      state=$(run_state)
      if [[ -n $state ]]; then silent=0; else silent=$((silent + 1)); fi
      if [[ $state == running ]]; then steady=$((steady + 1)); else steady=0; fi
      ((steady < 30)) || failures=0
      ((silent < 20)) ||
        stop "worker 0 does not answer, but $name costs money: see delete.sh --name=$name."
      case $state in
        running | "") ;;
        0)
          "$here/delete.sh" "${machine[@]}"
          say "the run has ended well."
          exit
          ;;
        none)
          "$here/setup.sh" "${ready[@]}" || failed "$name could not be set up"
          "$here/launch.sh" "${machine[@]}" "${others[@]}" || failed "$name could not be launched"
          ;;
        *)
          failed "the run ended with status $state"
          end_all
          "$here/launch.sh" "${machine[@]}" "${others[@]}" || say "not launched; looking again."
          ;;
      esac
      ;;
    SUSPENDING | SUSPENDED | FAILED)
      lost=$((lost + 1))
      ((lost < 10)) ||
        stop "10 requests for $type in a row came to nothing; run the same command later."
      say "$name was taken away or not given; asking for it again."
      "$here/delete.sh" "${machine[@]}" || say "looking again."
      ;;
    DELETING) ;;
    *) # gone, or in the queue; a request that is lost while it waits is told at the next look
      if ! "$here/create.sh" "${request[@]}" && [[ $(slice_state) == GONE ]]; then
        stop "there is no slice; mend what gcloud says above and run the same command."
      fi
      continue
      ;;
  esac
  sleep "${POLL_SECONDS:-60}"
done

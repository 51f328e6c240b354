#!/usr/bin/env bash
# A whole run on a slice that may be taken away: asks for it, sets it up, launches, and looks on;
# when the slice is preempted it is asked for again and the run goes on from its last checkpoint:
#   tpu_scripts/run.sh --name=polylm --type=v5p-128 [--slices=N] [--spot | --reserved]
#     [--tokenizer=FILE.model] --gin_file=FILE [--gin.NAME=VALUE …] [--zone=Z] [--project=P]
# The rows and train.folder must be where every slice finds them again. All that can be refused is
# refused here before anything is asked for; --unchecked goes without. What the workers get is the
# commit of this moment. This script may be stopped at any time, and the same command takes over.
# One slice of several that is lost ends all: they are started again when all are there.
# Only a finished run's slice is deleted. A run that was stopped or lost a process is started
# again, one that failed up to three times, and one that a person must look at is left alone.
set -euo pipefail
here=$(dirname "$0")
knows="--name= --type= --slices= --spot --reserved --tokenizer= --gin_file= --gin.NAME= --unchecked"
knows+=" --zone= --project="
# shellcheck source=common.sh source-path=SCRIPTDIR
source "$here/common.sh"
# shellcheck source=ends.sh source-path=SCRIPTDIR
source "$here/ends.sh"
# shellcheck source=check.sh source-path=SCRIPTDIR
source "$here/check.sh"
[[ -n $type ]] || stop "say which slice with --type=TYPE, for example --type=v5p-128."
needs_gin_file

machine=("--name=$name" ${zone:+--zone="$zone"} ${project:+--project="$project"})
everywhere=("${machine[@]}" "--slices=$slices")
create=("$here/create.sh" "${everywhere[@]}" "--type=$type")
[[ $spot == false ]] || create+=(--spot)
[[ $reserved == false ]] || create+=(--reserved)
setup=("$here/setup.sh" "${everywhere[@]}" ${tokenizer:+--tokenizer="$tokenizer"})
setup+=(--commit="$(git -C "$root" rev-parse HEAD)")
launch=("$here/launch.sh" "${everywhere[@]}" "${arguments[@]}" --unchecked)
delete=("$here/delete.sh" "${machine[@]}")

# each step refuses what it does not know
steps() {
  "${create[@]}" --dry_run && "${setup[@]}" --dry_run &&
    "${launch[@]}" --dry_run && "${delete[@]}" --dry_run
}
printed=$(steps) || exit 1
if [[ $unchecked == false ]]; then
  check_settings
  check_commit
  check_places stop
  check_tokenizer
  one=${type/#v5litepod-/v5e-}
  if ((slices == 1)); then check_slice "$one"; else check_slice "${slices}x$one"; fi
fi
if [[ $dry_run == true ]]; then
  echo "$printed"
  exit
fi

pause="" # the process that waits between two looks
rest() {
  # in the background, since a signal must not wait for its end
  sleep "${POLL_SECONDS:-60}" &
  pause=$!
  wait "$pause"
}
left() {
  [[ -z $pause ]] || kill "$pause" 2>/dev/null || true
  say "no longer looks on; nothing was stopped or deleted, so $name goes on and costs money: the" \
    "same command takes over, delete.sh --name=$name ends it."
  exit "$1"
}
trap 'left 130' INT
trap 'left 143' TERM

# the request's state; with several slices INCOMPLETE, while one is being replaced or repaired
slice_state() {
  local state node
  state=$(tpus queued-resources describe "$name" --format="value(state.state)" 2>/dev/null) ||
    state=GONE
  if [[ $state == ACTIVE ]] && ((slices > 1)); then
    for node in "${nodes[@]}"; do
      case $(tpus tpu-vm describe "$node" --format="value(state)" 2>/dev/null) in
        READY) ;;
        PREEMPTED | TERMINATED) state=SUSPENDED && break ;;
        *) state=INCOMPLETE ;;
      esac
    done
  fi
  echo "$state"
}

# how the run fares on a worker: its exit status, "running", or "none" where nothing was launched.
# The worker expands what is in single quotes.
# shellcheck disable=SC2016
look='
if kill -0 "$(cat ~/polylm.pid 2>/dev/null)" 2>/dev/null; then echo running
elif [ -f ~/polylm.exit ]; then cat ~/polylm.exit
else echo none; fi'

# states WHERE LOOK (WHERE is a function of common.sh): a line of each worker that answers
states() { "$@" 2>/dev/null | grep -E -x 'running|none|[0-9]+' || true; }

# half of a pod may still hold the chips; it saves upon SIGTERM, and has a minute for that
# shellcheck disable=SC2016
end_all() {
  on_all_workers 'pid=$(cat ~/polylm.pid) && kill "$pid" 2>/dev/null || exit 0
for _ in $(seq 60); do kill -0 "$pid" 2>/dev/null || exit 0; sleep 1; done
kill -9 "$pid" 2>/dev/null || true' || true
}

last_lines() { on_first 'tail -n 20 ~/polylm.log' >&2 || true; }

failed() {
  failures=$((failures + 1))
  if ((failures == 3)); then
    last_lines
    stop "$1 3 times (its last lines are above); $name still costs money: mend it and run the" \
      "same command, or run delete.sh --name=$name."
  fi
  say "$1; once more."
}

# a finished run's slice costs as much as one at work, so it is not left to one answer of gcloud's
give_back() {
  local try
  for ((try = 1; try < 30; try++)); do
    "${delete[@]}" && return
    # what was asked for may have been done all the same
    [[ $(tpus queued-resources describe "$name" 2>&1) != *NOT_FOUND* ]] || return 0
    rest
  done
  "${delete[@]}" || stop "the run has ended well, but $name is not deleted."
}

# ended STATUS: what follows the end of the run on worker 0
ended() {
  local status=$1 others=""
  # an end that is no success may be the echo of another worker's
  ((status == 0)) || others=$(states on_all_workers "$look")
  # shellcheck disable=SC2086
  status=$(gravest "$status" $others)
  end_of "$status"
  if [[ $action == "done" ]]; then
    give_back
    say "the run has ended well."
    exit
  fi
  say "the run has ended: $word, $meaning."
  case $action in
    person)
      last_lines
      say "a person must decide (its last lines are above): nothing was started or deleted, and" \
        "$name still costs money; mend it, start it with launch.sh and look on with the same" \
        "command, or run delete.sh --name=$name."
      exit "$status"
      ;;
    again) say "it is started again." ;;
    retry) failed "the run ended with status $status" ;;
  esac
  end_all
  # where nothing was launched, the machine may be one that has come for another
  if [[ $others == *none* ]]; then start set_up_and_launch; else start "${launch[@]}"; fi
}

set_up_and_launch() { "${setup[@]}" && "${launch[@]}"; }

# start COMMAND …; a slice that is taken away meanwhile is seen at the next look
start() {
  "$@" || [[ $(slice_state) != ACTIVE ]] || failed "$name could not be set up or launched"
}

# nobody: worker 0 does not answer, or a slice is not there
nobody() {
  silent=$((silent + 1))
  ((silent > 1)) || say "$1; looking again."
  ((silent < 20)) || stop "$1, but $name costs money: see delete.sh --name=$name."
}

failures=0 # to run, since it last ran for 30 looks
steady=0   # looks in a row at which it ran
silent=0   # looks in a row at which worker 0 did not answer or a slice was not there
lost=0     # requests in a row that came to nothing
unheard=0  # looks in a row at which gcloud neither found the request nor made one
seen=false # whether a slice was asked for: what gcloud does not find then may be gcloud's trouble
while true; do
  state=$(slice_state)
  [[ $state == GONE ]] || unheard=0
  case $state in
    ACTIVE)
      lost=0 seen=true
      state=$(states on_first "$look")
      if [[ -n $state ]]; then silent=0; else nobody "worker 0 does not answer"; fi
      if [[ $state == running ]]; then steady=$((steady + 1)); else steady=0; fi
      ((steady < 30)) || failures=0
      case $state in
        running | "") ;;
        none) start set_up_and_launch ;;
        *) ended "$state" ;;
      esac
      ;;
    INCOMPLETE) nobody "a slice is not there" ;;
    SUSPENDING | SUSPENDED | FAILED)
      lost=$((lost + 1))
      ((lost < 10)) ||
        stop "10 requests for $type in a row came to nothing; run the same command later."
      say "$name was taken away or not given; asking for it again."
      "${delete[@]}" || say "looking again."
      ;;
    DELETING) ;;
    *) # gone, or in the queue; a request that is lost while it waits is told at the next look
      status=0
      "${create[@]}" || status=$?
      if ((status == 0)) || [[ $(slice_state) != GONE ]]; then continue; fi
      ((status != 2)) || seen=true
      [[ $seen == true ]] ||
        stop "there is no slice; mend what gcloud says above and run the same command."
      unheard=$((unheard + 1))
      ((unheard < 30)) ||
        stop "gcloud did not tell of $name 30 times; mend what it says above and run the same" \
          "command. Nobody looks on until then, and what there is costs money: delete.sh" \
          "--name=$name ends it."
      ;;
  esac
  rest
done

# shellcheck shell=bash
# How a run ended, by its exit status: polylm_jax/train/ends.py for machines that have only bash.
# The tests compare the two, status by status. Sourced, never run.
# The variables are read by the scripts that source this file.
# shellcheck disable=SC2034

# end_of STATUS: sets word, meaning ("the run ended because …") and action: done, again (as often
# as it takes), retry (a few times) or person (start nothing, delete nothing, and say so)
end_of() {
  case $1 in
    0) word="finished" action="done" meaning="all steps are done" ;;
    65) word="stuck" action="person" meaning="optimizer.spike_patience steps in a row were skipped" ;;
    66) word="out of data" action="person" meaning='a source has no unread rows (on_end = "refuse")' ;;
    69) word="busy" action="retry" meaning="another process writes the folder; nothing was touched" ;;
    73) word="storage full" action="person" meaning="there was no room to save" ;;
    74) word="data stalled" action="retry" meaning="rows did not come within train.data_timeout" ;;
    75) word="stopped" action="again" meaning="it was asked to stop, by SIGTERM or Ctrl-C" ;;
    76) word="lost" action="again" meaning="another process of the run was lost" ;;
    78) word="unequal" action="person" meaning="the processes differ in settings, folder, data or code" ;;
    *) word="failed" action="retry" meaning="something went wrong that has no word of its own" ;;
  esac
}

# statuses_of ACTION: those of the table, a line each
statuses_of() {
  local status
  for ((status = 0; status < 128; status++)); do
    end_of "$status"
    [[ $word == failed || $action != "$1" ]] || echo "$status"
  done
}

# gravest STATUS…: of the processes of one run the status to act on; what is no number is no end
gravest() {
  local wanted status
  for wanted in person retry again "done"; do
    for status in "$@"; do
      [[ $status =~ ^[0-9]+$ ]] || continue
      end_of "$status"
      [[ $action != "$wanted" ]] || { echo "$status" && return; }
    done
  done
}

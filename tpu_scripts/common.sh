# shellcheck shell=bash
# Shared by the scripts beside it, sourced, never run: the flags, and `run`, which obeys --dry_run.
# Flags are written --flag=value. Without --zone or --project gcloud takes its own defaults.
# The variables are read by the scripts that source this file.
# shellcheck disable=SC2034

name="" zone="" project="" type="" tokenizer="" spot=false reserved=false dry_run=false
others=() # what is not a flag of ours, in the order given

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

stop() {
  say "$@"
  exit 1
}

while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --tokenizer=*) tokenizer=${1#*=} ;;
    --spot) spot=true ;;
    --reserved) reserved=true ;;
    --dry_run) dry_run=true ;;
    *) others+=("$1") ;;
  esac
  shift
done
[[ -n $name ]] || stop "give the machine a name with --name=NAME."

no_others() {
  ((${#others[@]} == 0)) || stop "does not know '${others[0]}'; flags are written --flag=value."
}

# Prints the command, quoted so that it can be pasted, or runs it.
run() {
  if [[ $dry_run == true ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# tpus GROUP VERB …: one gcloud command, in the zone and project of the flags
tpus() {
  run gcloud compute tpus "$@" ${zone:+--zone="$zone"} ${project:+--project="$project"}
}

on_all_workers() { tpus tpu-vm ssh "$name" --worker=all --command="$1"; }

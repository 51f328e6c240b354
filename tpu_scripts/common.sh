# shellcheck shell=bash
# Shared by the scripts beside it, sourced, never run: the flags, and `run`, which obeys --dry_run.
# A script names in `knows` the flags it takes: `--zone=` has a value, `--spot` has none, and each
# sets the variable of its name. Only `--gin_file=FILE` and `--gin.NAME=VALUE` reach `polylm`.
# The variables are read by the scripts that source this file.
# shellcheck disable=SC2034

# all flags, as they stand where they are not given; without a zone or project gcloud takes its own
name="" zone="" project="" type="" slices=1 tokenizer="" commit=HEAD folder="" to=""
topology="" cluster="" image="" max_restarts=100
spot=false reserved=false unchecked=false dry_run=false
arguments=() # for `polylm`, in the order given

script=${script:-$(basename "$0")}
knows="${knows:?} --dry_run"

say() { printf '%s: %s\n' "$script" "$*" >&2; }

stop() {
  say "$@"
  exit 1
}

knows() {
  local word
  for word in $knows; do
    [[ $word != "$1" ]] || return 0
  done
  return 1
}

for argument in "$@"; do
  flag=${argument%%=*} value=${argument#*=}
  case $flag in
    --gin.?*) kind="--gin.NAME=" ;;
    *) kind="$flag=" ;;
  esac
  if knows "$kind"; then
    [[ $argument == *=* ]] || stop "$flag takes its value after =, as in $flag=VALUE."
    [[ -n $value || $kind == --gin.NAME= ]] || stop "$flag= has no value."
    case $flag in
      --gin*) arguments+=("$argument") ;;
      *) printf -v "${flag#--}" %s "$value" ;;
    esac
  elif knows "$flag"; then
    [[ $argument == "$flag" ]] || stop "$flag takes no value."
    printf -v "${flag#--}" true
  elif [[ $argument == -h || $argument == --help ]]; then
    # the comment at the script's head
    exec sed -n -e '2,/^[^#]/!d' -e 's/^# \{0,1\}//p' "$0"
  else
    stop "does not know '$argument'; it knows $knows."
  fi
done
[[ -n $name ]] || ! knows --name= || stop "give the machine a name with --name=NAME."
[[ $slices =~ ^[1-9][0-9]{0,2}$ ]] || stop "--slices=$slices is no number from 1 to 999."

# the slices as Google names them, and what tells the next script of them
nodes=("$name") these="--name=$name"
if ((slices > 1)); then
  nodes=() these+=" --slices=$slices"
  for ((node = 0; node < slices; node++)); do nodes+=("$name-$node"); done
fi

needs_gin_file() {
  [[ " ${arguments[*]-}" == *" --gin_file="* ]] || stop "say what to train with --gin_file=FILE."
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

# on_all_workers COMMAND: of all slices, one slice after the other
on_all_workers() {
  local node failed=0
  for node in "${nodes[@]}"; do
    tpus tpu-vm ssh "$node" --worker=all --command="$1" || failed=1
  done
  return "$failed"
}

# on_first COMMAND: on worker 0 of the first slice, which speaks for all
on_first() { tpus tpu-vm ssh "${nodes[0]}" --worker=0 --command="$1"; }

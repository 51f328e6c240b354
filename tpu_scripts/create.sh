#!/usr/bin/env bash
# Ask for a TPU slice, or for several, all or none, and wait until they are ours:
#   tpu_scripts/create.sh --name=polylm --type=v5p-128 [--slices=N] [--spot | --reserved]
#     [--zone=Z] [--project=P]
# Of several slices each is of that type, and has a name of its own: polylm-0, polylm-1, …
# Interrupt the waiting freely: the request stays in the queue, and the same command waits on.
set -euo pipefail
knows="--name= --type= --slices= --spot --reserved --zone= --project="
# shellcheck source=common.sh source-path=SCRIPTDIR
source "$(dirname "$0")/common.sh"
[[ -n $type ]] || stop "say which slice with --type=TYPE, for example --type=v5p-128."
[[ $spot == false || $reserved == false ]] || stop "a slice is --spot or --reserved, not both."

# the machine image that Google names for JAX on each generation
case $type in
  v6e-*) image=v2-alpha-tpuv6e ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v4-*) image=tpu-ubuntu2204-base ;;
  *) stop "does not know the slice '$type'; it knows v4-N, v5litepod-N (v5e), v5p-N and v6e-N." ;;
esac

# Google tells the machines of several slices of each other; libtpu and JAX ask for that
shape=(--node-id="$name")
((slices == 1)) || shape=(--node-count="$slices" --node-prefix="$name")
request=(create "$name" "${shape[@]}" --accelerator-type="$type" --runtime-version="$image")
[[ $spot == false ]] || request+=(--spot)
[[ $reserved == false ]] || request+=(--reserved)
look=(describe "$name" --format="value(state.state)")

if [[ $dry_run == true ]]; then
  tpus queued-resources "${request[@]}"
  tpus queued-resources "${look[@]}"
  exit
fi

# a request of that name that is already in the queue is waited for, not made again
if ! state=$(tpus queued-resources "${look[@]}" 2>/dev/null); then
  tpus queued-resources "${request[@]}" || stop "gcloud refused $name ($type); it says why above."
  state="asked for"
fi

silent=0 # looks in a row that gcloud did not answer: the request stays, and may be granted meanwhile
while [[ $state != ACTIVE ]]; do
  case $state in
    FAILED | DELETING | SUSPENDING | SUSPENDED)
      why=$(tpus queued-resources describe "$name" --format="value(state.failedData.error.message)")
      printf '\n'
      stop "$name is $state${why:+ ($why)}; remove it with delete.sh --name=$name and ask again."
      ;;
  esac
  printf '\r%s is %s, %d s ' "$name" "$state" "$SECONDS"
  sleep "${POLL_SECONDS:-15}"
  if seen=$(tpus queued-resources "${look[@]}"); then
    state=$seen silent=0
  elif ((++silent == 40)); then
    say "gcloud no longer tells of $name, which was asked for and may come to cost money; it says" \
      "why above: mend that, and the same command waits on."
    exit 2
  fi
done
printf '\r%s is ACTIVE after %d s\n' "$name" "$SECONDS"
echo "next: tpu_scripts/setup.sh $these"

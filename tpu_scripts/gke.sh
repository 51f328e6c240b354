#!/usr/bin/env bash
# The same on GKE, as a JobSet, which starts again by itself when a node is taken away:
#   SLICE='--name=polylm --type=v5p --topology=4x4x4' # and --slices=N for several
#   tpu_scripts/gke.sh create $SLICE --cluster=C [--spot | --reserved=RESERVATION]
#   tpu_scripts/gke.sh launch $SLICE --image=IMAGE --gin_file=FILE [--gin.NAME=VALUE …]
#   tpu_scripts/gke.sh watch --name=polylm
#   tpu_scripts/gke.sh delete --name=polylm
#   tpu_scripts/gke.sh delete-nodes --name=polylm --cluster=C [--slices=N]
# create makes a pool of nodes that grows to one slice and shrinks to nothing when it is idle, for
# each slice one: several are polylm-0, polylm-1, …, and GKE tells their pods of each other. The
# cluster must have JobSet 0.10 or newer (jobset.sigs.k8s.io). kubectl must point at the cluster
# (gcloud container clusters get-credentials). launch checks the run here first; --unchecked goes
# without. The job completes when the run has finished, fails for good when a person must look at it,
# and else starts again: --max_restarts=N (100) bounds how often, a pod that was stopped or whose
# node was taken away not counted. To go on after that, delete it and launch it again.
set -euo pipefail
verb=${1-}
shift || true
here=$(dirname "$0")
knows="--name= --type= --topology= --slices= --cluster= --spot --reserved= --image= --max_restarts="
knows+=" --gin_file= --gin.NAME= --unchecked --zone= --project="
# shellcheck source=common.sh source-path=SCRIPTDIR
source "$here/common.sh"
# shellcheck source=ends.sh source-path=SCRIPTDIR
source "$here/ends.sh"
# shellcheck source=check.sh source-path=SCRIPTDIR
source "$here/check.sh"

# what GKE calls each generation, its machine with 4 chips, and TensorCores of a chip in its names
slice() {
  case $type in
    v4) accelerator=tpu-v4-podslice machine=ct4p-hightpu-4t cores=2 ;;
    v5e) accelerator=tpu-v5-lite-podslice machine=ct5lp-hightpu-4t cores=1 ;;
    v5p) accelerator=tpu-v5p-slice machine=ct5p-hightpu-4t cores=2 ;;
    v6e) accelerator=tpu-v6e-slice machine=ct6e-standard-4t cores=1 ;;
    *) stop "does not know --type='$type'; it knows v4, v5e, v5p and v6e." ;;
  esac
  [[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || stop "give the chips as --topology=4x4x4 or 8x16."
  chips=$((${topology//x/*}))
  hosts=$((chips / 4))
  ((hosts > 0)) || stop "--topology=$topology has fewer than the 4 chips of one machine."
  # as GKE has it
  ((slices == 1 || hosts > 1)) ||
    stop "--topology=$topology is one machine, and of several slices each must have more."
}

# JSON, which is YAML too
quoted() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

manifest() {
  local list argument person pools
  person=$(statuses_of person | paste -s -d , -)
  pools=$(printf ', %s' "${nodes[@]}")
  list=$(quoted train)
  for argument in "${arguments[@]}"; do list+=", $(quoted "$argument")"; done
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $max_restarts
    rules: # by the rule of podFailurePolicy below, whose index ends the job's message
      - name: person
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
        onJobFailureMessagePatterns: [".*rule at index 0\$"]
      - name: stopped
        action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0 # one lost pod ends the job, and the JobSet starts all of them again
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: polylm, operator: In, values: [$person]}
              # "stopped"; not "lost", which may be the echo of a pod that fails each time
              - action: FailJob
                onExitCodes: {containerName: polylm, operator: In, values: [75]}
              - action: FailJob
                onPodConditions: [{type: DisruptionTarget, status: "True"}]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120 # the run saves upon SIGTERM
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
              affinity: # by the annotation above one pool has one slice
                nodeAffinity:
                  requiredDuringSchedulingIgnoredDuringExecution:
                    nodeSelectorTerms:
                      - matchExpressions:
                          - key: cloud.google.com/gke-nodepool
                            operator: In
                            values: [${pools#, }]
              tolerations:
                - key: google.com/tpu
                  operator: Exists
                - key: cloud.google.com/gke-spot
                  operator: Exists
              containers:
                - name: polylm
                  image: $(quoted "$image")
                  args: [$list]
                  resources:
                    requests: {google.com/tpu: 4}
                    limits: {google.com/tpu: 4}
YAML
}

# pools VERB …: with the pool of each slice
pools() {
  local node failed=0
  [[ -n $cluster ]] || stop "say which cluster with --cluster=NAME."
  for node in "${nodes[@]}"; do
    run gcloud container node-pools "$1" "$node" "${@:2}" --cluster="$cluster" \
      ${zone:+--location="$zone"} ${project:+--project="$project"} || failed=1
  done
  return "$failed"
}

# what the image lacks is seen by its pods only
check_image() {
  local place
  place=$(setting tokenizer.path)
  is_remote "$place" || [[ $place != /* && -e $root/$place ]] ||
    stop "tokenizer.path = '$place' is not in $root, and so in no image made from it; put it" \
      "there and make the image anew."
  say "note: $image must have been made from the files that are here now."
}

# The exit status that failed the job stands in its message, unless it has used up its restarts.
ended() {
  local status
  status=$(kubectl get jobs --selector="jobset.sigs.k8s.io/jobset-name=$name" \
    --output='jsonpath={.items[*].status.conditions[*].message}' |
    sed -n 's/.*exit code \([0-9]*\) matching.*/\1/p') || true
  [[ -n $status ]] || stop "$name has failed for good; the log above says why."
  end_of "$status"
  say "the run has ended: $word, $meaning. A person must decide, so it is not started again: mend" \
    "it, then gke.sh delete and gke.sh launch."
  exit "$status"
}

case $verb in
  create)
    slice
    [[ $spot == false || $reserved == false ]] || stop "nodes are --spot or --reserved, not both."
    wanted=(create --machine-type="$machine" --tpu-topology="$topology" --num-nodes=0)
    wanted+=(--enable-autoscaling --min-nodes=0 --max-nodes="$hosts")
    [[ $spot == false ]] || wanted+=(--spot)
    [[ $reserved == false ]] ||
      wanted+=(--reservation-affinity=specific --reservation="$reserved")
    pools "${wanted[@]}" || stop "gcloud refused the nodes of $name; it says why above."
    ;;
  launch)
    slice
    [[ -n $image ]] || stop "say what to run with --image=IMAGE; see tpu_scripts/Dockerfile."
    needs_gin_file
    if [[ $unchecked == false ]]; then
      check_settings
      check_places stop
      check_image
      one=$type-$((chips * cores))
      if ((slices == 1)); then check_slice "$one"; else check_slice "${slices}x$one"; fi
    fi
    if [[ $dry_run == true ]]; then
      printf 'kubectl apply --filename=- <<"YAML"\n%s\nYAML\n' "$(manifest)"
    else
      told=$(manifest | kubectl apply --filename=-) ||
        stop "kubectl refused $name; it says why above."
      [[ $told != *unchanged* ]] ||
        stop "$name is there already, running or ended; to start it anew, delete it first."
      echo "$name is launched; look on with tpu_scripts/gke.sh watch --name=$name"
    fi
    ;;
  watch)
    first="jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0"
    first+=",batch.kubernetes.io/job-completion-index=0"
    # pod 0 speaks for all; after a restart there is a new one, so this asks again until it ends
    if [[ $dry_run == true ]]; then
      run kubectl logs --follow --tail=100 --selector="$first"
      exit
    fi
    while true; do
      end=$(kubectl get jobset "$name" --output='jsonpath={.status.terminalState}') ||
        stop "there is no JobSet $name; launch it first."
      kubectl logs --follow --tail=100 --selector="$first" || say "no log yet."
      case $end in
        Completed) break ;;
        Failed) ended ;;
      esac
      sleep "${POLL_SECONDS:-15}"
    done
    ;;
  delete) run kubectl delete jobset "$name" ;;
  delete-nodes) pools delete --quiet ;;
  *) stop "does not know '$verb'; it knows create, launch, watch, delete and delete-nodes." ;;
esac

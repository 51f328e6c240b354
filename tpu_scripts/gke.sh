#!/usr/bin/env bash
# The same on GKE, as a JobSet, which starts again by itself when a node is taken away:
#   SLICE='--name=polylm --type=v5p --topology=4x4x4'
#   tpu_scripts/gke.sh create $SLICE --cluster=C [--spot | --reserved=RESERVATION]
#   tpu_scripts/gke.sh launch $SLICE --image=IMAGE --gin_file=FILE [--gin.NAME=VALUE …]
#   tpu_scripts/gke.sh watch --name=polylm
#   tpu_scripts/gke.sh delete --name=polylm
#   tpu_scripts/gke.sh delete-nodes --name=polylm --cluster=C
# create makes a pool of nodes that grows to one slice and shrinks to nothing when it is idle; the
# cluster must have JobSet (jobset.sigs.k8s.io). kubectl must point at the cluster (gcloud container
# clusters get-credentials). --max_restarts=N (1000) bounds how often a job starts again.
set -euo pipefail
verb=${1-}
shift || true
# shellcheck source=common.sh source-path=SCRIPTDIR
source "$(dirname "$0")/common.sh"

topology="" cluster="" image="" reservation="" max_restarts=1000
arguments=()
for flag in ${others[@]+"${others[@]}"}; do
  case $flag in
    --topology=*) topology=${flag#*=} ;;
    --cluster=*) cluster=${flag#*=} ;;
    --image=*) image=${flag#*=} ;;
    --reserved=*) reservation=${flag#*=} ;;
    --max_restarts=*) max_restarts=${flag#*=} ;;
    --gin*) arguments+=("$flag") ;;
    *) stop "does not know '$flag'; flags are written --flag=value." ;;
  esac
done

# what GKE calls each generation, and its machine with 4 chips
slice() {
  case $type in
    v4) accelerator=tpu-v4-podslice machine=ct4p-hightpu-4t ;;
    v5e) accelerator=tpu-v5-lite-podslice machine=ct5lp-hightpu-4t ;;
    v5p) accelerator=tpu-v5p-slice machine=ct5p-hightpu-4t ;;
    v6e) accelerator=tpu-v6e-slice machine=ct6e-standard-4t ;;
    *) stop "does not know --type='$type'; it knows v4, v5e, v5p and v6e." ;;
  esac
  [[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || stop "give the chips as --topology=4x4x4 or 8x16."
  hosts=$((${topology//x/*} / 4))
  ((hosts > 0)) || stop "--topology=$topology has fewer than the 4 chips of one machine."
}

# JSON, which is YAML too
quoted() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

manifest() {
  local list argument
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
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0 # one lost pod ends the job, and the JobSet starts all of them again
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120 # the run saves upon SIGTERM
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
                cloud.google.com/gke-nodepool: $name
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

pools() {
  [[ -n $cluster ]] || stop "say which cluster with --cluster=NAME."
  run gcloud container node-pools "$@" --cluster="$cluster" \
    ${zone:+--location="$zone"} ${project:+--project="$project"}
}

case $verb in
  create)
    slice
    wanted=(create "$name" --machine-type="$machine" --tpu-topology="$topology" --num-nodes=0)
    wanted+=(--enable-autoscaling --min-nodes=0 --max-nodes="$hosts")
    [[ $spot == false ]] || wanted+=(--spot)
    [[ -z $reservation ]] ||
      wanted+=(--reservation-affinity=specific --reservation="$reservation")
    pools "${wanted[@]}" || stop "gcloud refused the nodes of $name; it says why above."
    ;;
  launch)
    slice
    [[ -n $image ]] || stop "say what to run with --image=IMAGE; see tpu_scripts/Dockerfile."
    [[ " ${arguments[*]-}" == *" --gin_file="* ]] || stop "say what to train with --gin_file=FILE."
    if [[ $dry_run == true ]]; then
      printf 'kubectl apply --filename=- <<"YAML"\n%s\nYAML\n' "$(manifest)"
    else
      manifest | kubectl apply --filename=- || stop "kubectl refused $name; it says why above."
      echo "$name is launched; look on with tpu_scripts/gke.sh watch --name=$name"
    fi
    ;;
  watch)
    first="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
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
        Failed) stop "$name has failed for good; the log above says why." ;;
      esac
      sleep "${POLL_SECONDS:-15}"
    done
    ;;
  delete) run kubectl delete jobset "$name" ;;
  delete-nodes) pools delete "$name" --quiet ;;
  *) stop "does not know '$verb'; it knows create, launch, watch, delete and delete-nodes." ;;
esac

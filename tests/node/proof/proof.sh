#!/usr/bin/env bash
# Shows that the node is a real one, and how long each thing takes: `node.sh proof`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
[[ ${NAGAYA_NODE:-} == 1 ]] || { echo "run me by node.sh" >&2 && exit 2; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
disk=$scratch/disk said=$scratch/said
mkdir "$disk"

proof() { kubectl --namespace proof "$@"; }
pod() { proof get pods --output="jsonpath={.items[0].$1}"; }
state() { proof get pod "$1" --output="jsonpath={.status.containerStatuses[0].$2}"; }

# measure WHAT COMMAND...
measure() {
  local began=$EPOCHREALTIME
  if ! "${@:2}" > "$said" 2>&1; then
    echo "proof: FAILED: $1" >&2
    cat "$said" >&2
    proof describe pods >&2
    exit 1
  fi
  awk "BEGIN { printf \"proof: %-62s %5.1f s\n\", \"$1\", $EPOCHREALTIME - $began }"
}

wait_for() {
  local turn
  for turn in {1..600}; do
    "$@" && return 0
    sleep 0.1
  done
  echo "not within $turn turns: $*" >&2
  return 1
}

roll_out() {
  sed "s|@DISK@|$disk|" "$here/proof.yaml" | kubectl apply --filename=-
  proof rollout status deployment/proof --timeout=60s
}

roll_on() {
  proof set env deployment/proof AGAIN=1
  proof rollout status deployment/proof --timeout=60s
  wait_for only_new_pods
}
only_new_pods() { [[ $(proof get pods --output=name | wc -l) == 2 ]]; }

answers() { [[ $(curl --silent --max-time 2 "http://$(pod status.podIP):8080/$1") == "$2" ]]; }

is_back() { [[ $(state "$1" restartCount) == "$2" && $(state "$1" ready) == true ]]; }

kill_process() {
  kill -9 "$(pgrep --full --oldest ^/proof$)"
  wait_for restarted_once
}
restarted_once() {
  [[ $(proof get pods --output='jsonpath={.items[*].status.containerStatuses[0].restartCount}') == *1* ]] && all_ready
}
all_ready() { [[ $(proof get deployment proof --output='jsonpath={.status.readyReplicas}') == 2 ]]; }

take_memory() {
  local victim address before
  victim=$(pod metadata.name) address=$(pod status.podIP) before=$(state "$(pod metadata.name)" restartCount)
  curl --silent --max-time 30 "http://$address:8080/grow" || true
  wait_for is_back "$victim" $((before + 1))
  [[ $(state "$victim" lastState.terminated.reason) == OOMKilled ]]
}

logs_and_exec() {
  proof logs "$(pod metadata.name)"
  # A second one ends because the port is taken; so it ran in there.
  [[ $(proof exec "$(pod metadata.name)" -- /proof 2>&1 || true) == *"address already in use"* ]]
}

through_the_server() {
  [[ $(kubectl get --raw /api/v1/namespaces/proof/services/proof:http/proxy/healthz) == ok ]]
}

forward() {
  local forwarder
  proof port-forward service/proof 18080:http &
  forwarder=$!
  wait_for reached
  kill "$forwarder"
}
reached() { [[ $(curl --silent http://127.0.0.1:18080/healthz) == ok ]]; }

go_away() {
  proof scale deployment proof --replicas=0
  proof wait pods --all --for=delete --timeout=30s
}

measure "two replicas ready, restricted, memory limit, disk" roll_out
measure "the pod's port answers" answers healthz ok
measure "a pod asks the API server at its cluster address" answers api "10.0.0.1:443 200 OK"
measure "a pod's user writes to a local volume (fsGroup)" answers disk written
measure "rolling update of both" roll_on
measure "kill -9 of a container's process, until it is ready again" kill_process
measure "memory limit: OOMKilled, until it is ready again" take_memory
measure "kubectl logs and exec" logs_and_exec
measure "a Service's pod reached through the API server" through_the_server
measure "kubectl port-forward to a Service" forward
ps -eo rss,comm --sort=-rss | awk '{ sum += $1; if (NR > 1 && NR < 13) printf "proof: %6.1f MiB %s\n", $1 / 1024, $2 }
  END { printf "proof: %6.1f MiB in all (RSS)\n", sum / 1024 }'
measure "scaled to none, pods ended politely" go_away
